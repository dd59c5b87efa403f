"""Contexts of weights from the weights coded before them, as in context-based image coding (Wu and Memon 1997).

The magnitude of a weight is predicted by those of its row, its channel and its kernel, and its sign by its neighbors
in the kernel, because kernels are smooth. All arithmetic is on integers: the decoder repeats it, and one bit of
difference, which floating point may have from one machine to another, would garble the rest of the stream.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.weight_grids import GridSlice, WeightGrid

_ONE = 2**8  # 1 in fixed-point numbers
_MAX_RATIO = 16 * _ONE - 1
# Levels of the predicted magnitude relative to the mean: centers 2 ** (k / 3) for k from -6 to 6, in fixed point.
_CENTERS = np.array([64, 81, 102, 128, 161, 203, 256, 323, 406, 512, 645, 813, 1024])
_EDGES = np.array([72, 91, 114, 144, 181, 228, 287, 362, 456, 575, 724, 912])  # 2 ** ((k + 1/2) / 3)
_LEVEL_OF = np.searchsorted(_EDGES, np.arange(_MAX_RATIO + 1), side="right").astype(np.uint8)
NUM_LEVELS = len(_CENTERS)
NUM_TRENDS = 7
"""Levels of the predicted sign: strongly negative to strongly positive."""

_PRIOR = 3  # weights of mean magnitude that are added to the sums of each row and channel
_PRIOR_OF_KERNEL = 4  # weights of the magnitude predicted by row and channel, added to the sum of each kernel


class NeighborContexts:
    """Context of each element of a slice, from all slices before.

    Args:
        grid: Order of the elements.
    """

    def __init__(self, grid: WeightGrid) -> None:
        self._grid = grid
        self._values = np.zeros((grid.num_positions, grid.num_rows, grid.num_channels), np.int16)
        self._rows, self._row_counts = (np.zeros(grid.num_rows, np.int64) for _ in range(2))
        self._channels, self._channel_counts = (np.zeros(grid.num_channels, np.int64) for _ in range(2))
        # Without a kernel, nothing is known of other positions.
        shape = self._values.shape[1:] if grid.num_positions > 1 else (0, 0)
        self._kernel_sizes, self._kernel_sums = (np.zeros(shape, np.int32) for _ in range(2))

    def of(self, part: GridSlice) -> NDArray[np.uint8]:
        """Return the contexts of a slice, of shape ``(rows, channels)``, below ``NUM_LEVELS * NUM_TRENDS``."""
        mean = _ONE * (int(self._rows.sum()) + 1) // (int(self._row_counts.sum()) + 1) + 1
        rows = _ratios(self._rows[part.rows], self._row_counts[part.rows], mean)
        channels = _ratios(self._channels[part.channels], self._channel_counts[part.channels], mean)
        # At most 2**24, so 32 bits suffice.
        ratios = np.multiply.outer(rows, channels) >> 8
        if not part.position:
            return _LEVEL_OF[np.minimum(ratios, _MAX_RATIO, out=ratios)] * np.uint8(NUM_TRENDS) + np.uint8(
                NUM_TRENDS // 2
            )
        weight = part.position + _PRIOR_OF_KERNEL
        ratios *= _ONE * _PRIOR_OF_KERNEL // weight
        per_size = 2**24 // (mean * weight)
        # Clipped where the ratio is beyond the last level anyway, so that the product does not overflow.
        sizes = np.minimum(self._kernel_sizes[part.rows, part.channels], 2**20 // (per_size + 1) + 1)
        sizes *= np.int32(per_size)
        ratios += sizes
        ratios >>= 8
        levels = _LEVEL_OF[np.minimum(ratios, _MAX_RATIO, out=ratios)]
        return levels * np.uint8(NUM_TRENDS) + self._trends(part, levels, mean)

    def _trends(self, part: GridSlice, levels: NDArray[np.uint8], mean: int) -> NDArray[np.uint8]:
        """Return the predicted sign relative to the predicted magnitude."""
        width, position = self._grid.kernel_width, part.position
        above, left = position >= width, position % width > 0
        total = self._kernel_sums[part.rows, part.channels].copy()
        # Least squares on trained kernels give about these weights, whatever the network.
        for offset, factor, exists in (
            (1, 6, left),
            (width, 6, above),
            (width + 1, -3, above and left),
            (width - 1, 3, above and width > 1 and (position + 1) % width > 0),
        ):
            if exists:
                total += np.int32(factor) * self._values[position - offset, part.rows, part.channels]
        # Edges at 1, 3 and 5 times 3.75 times the predicted magnitude.
        inverse = 2**16 * 4 * _ONE**2 // (15 * _CENTERS * mean)
        steps = np.minimum((np.abs(total) * inverse[levels] + 2**16) >> 17, NUM_TRENDS // 2)
        return (np.sign(total) * steps + NUM_TRENDS // 2).astype(np.uint8)

    def update(self, part: GridSlice, values: NDArray[np.int16]) -> None:
        """Take note of the values of a slice: signed ranks, 0 for zero."""
        sizes = np.abs(values)
        self._values[part.position, part.rows, part.channels] = values
        self._rows[part.rows] += sizes.sum(axis=1, dtype=np.int64)
        self._row_counts[part.rows] += values.shape[1]
        self._channels[part.channels] += sizes.sum(axis=0, dtype=np.int64)
        self._channel_counts[part.channels] += values.shape[0]
        if self._grid.num_positions > 1:
            self._kernel_sizes[part.rows, part.channels] += sizes
            self._kernel_sums[part.rows, part.channels] += values


def _ratios(sums: NDArray[np.int64], counts: NDArray[np.int64], mean: int) -> NDArray[np.int32]:
    """Return mean magnitudes relative to the mean of all, shrunk towards it, in fixed point."""
    means = (sums * _ONE + _PRIOR * mean) * _ONE // (counts + _PRIOR) // mean
    return np.minimum(means, _MAX_RATIO).astype(np.int32)
