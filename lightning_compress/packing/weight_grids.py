"""Order in which the elements of a tensor are coded when neighbors predict them.

All elements of a slice are coded at once, so that coding is a few array operations per slice; what predicts them are
the slices before.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MAX_POSITIONS = 64  # kernel positions, above which the positions of a kernel are channels
_NUM_CHANNEL_BLOCKS = 8  # blocks of a tensor without a kernel
_NUM_FIRST_BLOCKS = 16
_NUM_SLICES = 40
_MIN_SLICE = 128  # elements


@dataclass(frozen=True)
class GridSlice:
    """Elements that are coded at once: a block of one position of all kernels.

    Attributes:
        position: Position in the kernel.
        rows: Range of rows.
        channels: Range of channels.
    """

    position: int
    rows: slice
    channels: slice


@dataclass(frozen=True)
class WeightGrid:
    """Elements of a tensor by position in the kernel, row (output channel) and channel (input channel).

    Attributes:
        num_positions: Number of positions in a kernel.
        num_rows: Number of rows.
        num_channels: Number of channels.
        kernel_width: Size of the last dimension of a kernel.
    """

    num_positions: int
    num_rows: int
    num_channels: int
    kernel_width: int

    @staticmethod
    def of(shape: tuple[int, ...]) -> WeightGrid:
        """Return the grid of a tensor without sizes of zero.

        >>> WeightGrid.of((64, 32, 3, 3))
        WeightGrid(num_positions=9, num_rows=64, num_channels=32, kernel_width=3)
        >>> WeightGrid.of((10, 64))
        WeightGrid(num_positions=1, num_rows=10, num_channels=64, kernel_width=1)
        """
        rows, rest = (shape[0], shape[1:]) if len(shape) > 1 else (1, shape)
        num_positions = math.prod(rest[1:])
        if 1 < num_positions <= _MAX_POSITIONS:
            return WeightGrid(num_positions, rows, rest[0], rest[-1])
        return WeightGrid(1, rows, math.prod(rest), 1)

    def from_flat(self, elements: NDArray[Any]) -> NDArray[Any]:
        """Return a contiguous copy of shape ``(positions, rows, channels)`` of elements in the order of memory."""
        by_row = elements.reshape(self.num_rows, self.num_channels, self.num_positions)
        return np.ascontiguousarray(by_row.transpose(2, 0, 1))

    def to_flat(self, elements: NDArray[Any]) -> NDArray[Any]:
        """Return the elements in the order of memory; the inverse of :meth:`from_flat`."""
        return np.ascontiguousarray(elements.transpose(1, 2, 0)).reshape(-1)

    def slices(self) -> Iterator[GridSlice]:
        """Yield the slices in the order of coding."""
        # One kernel position after the other: then the sums of whole rows, channels and kernels predict all positions
        # but the first. Without a kernel, blocks of channels take the place of positions.
        num_blocks = 1 if self.num_positions > 1 else min(_NUM_CHANNEL_BLOCKS, self.num_channels)
        channels = _blocks(self.num_channels, num_blocks)
        wanted = -(-_NUM_SLICES // (self.num_positions * num_blocks))
        for position in range(self.num_positions):
            for block in channels:
                largest = max(self.num_rows * (block.stop - block.start) // _MIN_SLICE, 1)
                first = position == block.start == 0
                rows = _growing_blocks(self.num_rows) if first else _blocks(self.num_rows, min(wanted, largest))
                yield from (GridSlice(position, row_block, block) for row_block in rows)


def _blocks(size: int, num_blocks: int) -> list[slice]:
    num_blocks = min(num_blocks, size)
    edges = [size * k // num_blocks for k in range(num_blocks + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]


def _growing_blocks(size: int) -> list[slice]:
    # Quadratic growth: nothing is known of the first elements, and more of each following block.
    edges = sorted({size * k**2 // _NUM_FIRST_BLOCKS**2 for k in range(_NUM_FIRST_BLOCKS + 1)})
    return [slice(start, stop) for start, stop in itertools.pairwise(edges)]
