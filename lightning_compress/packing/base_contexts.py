"""Contexts of weights from the same weights of another file."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.unique import unique_patterns
from lightning_compress.packing.weight_grids import GridSlice, WeightGrid

MAX_BASE_VALUES = 256
_STRENGTH = 2  # observations as which the table of all contexts counts; most weights stay in their cluster


class BaseContexts:
    """Context of each element: the cluster to which it belongs in the base.

    Args:
        clusters: Cluster of each element, in the order of memory.
        grid: Order of the elements.
    """

    def __init__(self, clusters: NDArray[Any], grid: WeightGrid) -> None:
        self._clusters = grid.from_flat(clusters)

    def of(self, part: GridSlice) -> NDArray[Any]:
        """Return the contexts of a slice, of shape ``(rows, channels)``."""
        return np.ascontiguousarray(self._clusters[part.position, part.rows, part.channels])

    def update(self, part: GridSlice, values: NDArray[np.int16]) -> None:
        """Do nothing: the base is known from the beginning."""


class BaseFrequencies:
    """Frequencies of the symbols in each cluster of the base, learned from the counts so far."""

    def __init__(self, num_contexts: int, num_symbols: int) -> None:
        self._counts = np.zeros((num_contexts, num_symbols), np.int64)

    def tables(self) -> NDArray[np.int64]:
        """Return integer frequencies of shape ``(contexts, num_symbols)``, all at least 1."""
        of_all = self._counts.sum(axis=0) + 1
        prior = np.maximum((of_all << 20) // of_all.sum(), 1)
        total = self._counts.sum(axis=1, keepdims=True) + _STRENGTH
        return np.asarray(np.maximum(((self._counts << 20) + _STRENGTH * prior) // total, 1))

    def update(self, counts: NDArray[np.int64]) -> None:
        """Add counts of shape ``(contexts, num_symbols)``."""
        self._counts += counts


def clusters_of(base: BitPatterns) -> tuple[NDArray[Any], int] | None:
    """Return the cluster of each element of a base and their number, or ``None`` if there are too many."""
    if base.ndim > 1:
        return None
    found = unique_patterns(base)
    if found is None or len(found[0]) > MAX_BASE_VALUES:
        return None
    return found[1].astype(np.uint8), len(found[0])
