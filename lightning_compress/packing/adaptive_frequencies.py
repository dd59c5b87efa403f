"""Frequencies of symbols that are learned while they are coded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.neighbor_contexts import NUM_LEVELS, NUM_TRENDS

_STRENGTH_OF_ALL, _STRENGTH_OF_LEVEL = 30, 40  # observations as which the tables of the prior count


class AdaptiveFrequencies:
    """Frequencies of the symbols in each context, learned from the counts so far.

    There is a table for all symbols, one per level of magnitude and one per context, each the prior of the next. All
    are integers, so that encoder and decoder agree on every machine.

    Args:
        num_symbols: Number of symbols.
    """

    def __init__(self, num_symbols: int) -> None:
        self._counts = np.zeros((NUM_LEVELS, NUM_TRENDS, num_symbols), np.int64)

    def tables(self) -> NDArray[np.int64]:
        """Return integer frequencies of shape ``(contexts, num_symbols)``, all at least 1."""
        counts = self._counts
        all_levels = counts.sum(axis=(0, 1)) + 1
        prior = np.maximum((all_levels << 20) // all_levels.sum(), 1)
        # Neighboring levels and trends are alike, and count in part: with few weights that is most of what is known.
        by_level = _smoothed(counts.sum(axis=1), 2, axis=0)
        of_levels = _posterior(by_level, prior, 2 * _STRENGTH_OF_ALL)
        by_context = _smoothed(_smoothed(counts, 4, axis=1), 2, axis=0)
        return _posterior(by_context, of_levels[:, None], 8 * _STRENGTH_OF_LEVEL).reshape(-1, counts.shape[-1])

    def update(self, counts: NDArray[np.int64]) -> None:
        """Add counts of shape ``(contexts, num_symbols)``."""
        self._counts += counts.reshape(self._counts.shape)


def _posterior(counts: NDArray[np.int64], prior: NDArray[np.int64], strength: int) -> NDArray[np.int64]:
    total = counts.sum(axis=-1, keepdims=True) + strength
    return np.asarray(np.maximum(((counts << 20) + strength * prior) // total, 1))


def _smoothed(counts: NDArray[np.int64], center: int, *, axis: int) -> NDArray[np.int64]:
    """Return ``center`` times the counts plus those of both neighbors along an axis, 0 or 1."""
    result = center * counts
    if axis:
        result[:, 1:] += counts[:, :-1]
        result[:, :-1] += counts[:, 1:]
    else:
        result[1:] += counts[:-1]
        result[:-1] += counts[1:]
    return result
