"""Positions of zeros by a model that learns, row after row, how often each column is zero.

Pruned first layers have whole columns of zeros (borders of images), which cost next to nothing this way. A column's
probability comes from its counts in the rows before, in whole numbers, so that every machine repeats it. Rows are
taken in blocks that grow with what is known; in a block, columns of nearly the same probability are coded together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing import entropy
from lightning_compress.packing.streams import EncodingPlan, Stream, exactly, whole

_ONE = 2**16
_QUARTERS = (1024, 1218, 1448, 1722)  # 1024 * 2 ** (k / 4)


def _grid() -> NDArray[np.int64]:
    """Probabilities of a zero, in 65536ths, whose odds are a quarter of an octave apart; in whole numbers."""
    odds = [_QUARTERS[k % 4] << (k // 4) for k in range(57)]
    above = [_ONE * odd // (odd + 1024) for odd in odds]
    return np.array([*(_ONE - p for p in reversed(above[1:])), *above])


_ZERO = _grid()
_CLASS_OF = np.searchsorted((_ZERO[1:] + _ZERO[:-1]) // 2, np.arange(_ONE + 1)).astype(np.uint8)
_MODELS = [entropy.Categorical(np.array([p, _ONE - p], dtype=np.float64), perfect=False) for p in _ZERO.tolist()]
_BITS_OF_ZERO, _BITS_OF_ONE = -np.log2(_ZERO / _ONE), -np.log2(1 - _ZERO / _ONE)
_STRENGTHS = (1, 4, 16)  # rows that the overall fraction of zeros counts for in each column


class _Prior(NamedTuple):
    strength: int
    zeros: int  # overall fraction, in 65536ths

    def classes(self, num_zeros: NDArray[np.int64], num_rows: Any) -> NDArray[np.uint8]:
        """Which probability of the grid a column has after so many zeros in so many rows."""
        return _CLASS_OF[(num_zeros * _ONE + self.strength * self.zeros) // (num_rows + self.strength)]


def plan_column_masks(nonzero: NDArray[np.bool_], num_columns: int) -> EncodingPlan | None:
    """The plan for a mask of rows of so many columns, or none where there is nothing to be learnt."""
    rows = nonzero.reshape(-1, num_columns)
    if len(rows) < 4 or num_columns < 2:
        return None
    blocks = list(_blocks(len(rows)))
    heights = np.array([[stop - start] for start, stop in blocks])
    zeros = heights - np.stack([rows[start:stop].sum(axis=0, dtype=np.int64) for start, stop in blocks])
    before = np.cumsum(zeros, axis=0) - zeros
    overall = min(max(int(zeros.sum()) * _ONE // rows.size, 1), _ONE - 1)
    best: tuple[float, _Prior, NDArray[np.uint8]] | None = None
    for strength in _STRENGTHS:
        prior = _Prior(strength, overall)
        classes = prior.classes(before, np.array([[start] for start, _ in blocks]))
        bits = float((zeros * _BITS_OF_ZERO[classes] + (heights - zeros) * _BITS_OF_ONE[classes]).sum())
        if best is None or bits < best[0]:
            best = bits, prior, classes
    assert best is not None
    bits, prior, classes = best
    return EncodingPlan(bits / 8 + 4, lambda: [Stream("columns", _encode(rows, blocks, classes), tuple(prior))])


def read_column_masks(data: bytes, parameters: tuple[object, ...], size: int, num_columns: int) -> NDArray[np.bool_]:
    """The mask, flat.

    Raises:
        ValueError: If the stream is damaged.
    """
    strength, zeros = exactly(2, parameters)
    prior = _Prior(whole(strength, at_least=1, at_most=_ONE), whole(zeros, at_least=1, at_most=_ONE - 1))
    nonzero = np.empty((size // num_columns, num_columns), np.bool_)
    stack, before = entropy.stack_of(data), np.zeros(num_columns, np.int64)
    for start, stop in _blocks(len(nonzero)):
        block = np.empty((num_columns, stop - start), np.uint8)
        for index, columns in _alike(prior.classes(before, start)):
            symbols = entropy.pop(stack, len(columns) * (stop - start), _MODELS[index], np.uint8)
            block[columns] = symbols.reshape(-1, stop - start)
        nonzero[start:stop] = block.T
        before += (stop - start) - block.sum(axis=1, dtype=np.int64)
    entropy.check_empty(stack)
    return nonzero.reshape(-1)


def _encode(rows: NDArray[np.bool_], blocks: list[tuple[int, int]], classes: NDArray[np.uint8]) -> bytes:
    stack = entropy.AnsCoder()
    for (start, stop), row in zip(reversed(blocks), classes[::-1], strict=True):
        block = np.ascontiguousarray(rows[start:stop].T)
        for index, columns in reversed(list(_alike(row))):
            entropy.push(stack, block[columns].reshape(-1), _MODELS[index])
    return entropy.bytes_of(stack)


def _blocks(num_rows: int) -> Iterator[tuple[int, int]]:
    """First and last row of blocks that are a quarter of the rows before them."""
    start = 0
    while start < num_rows:
        stop = min(start + max(start // 4, 1), num_rows)
        yield start, stop
        start = stop


def _alike(classes: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """The columns of each probability."""
    order = np.argsort(classes, kind="stable")
    ends = np.cumsum(np.bincount(classes, minlength=len(_MODELS)))
    for index in np.flatnonzero(np.diff(ends, prepend=0)):
        yield int(index), order[ends[index - 1] if index else 0 : ends[index]]
