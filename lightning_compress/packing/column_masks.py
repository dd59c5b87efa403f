"""Positions of nonzero elements by an adaptive model of the sparsity of each column.

Pruned first layers often have columns that are zero in all rows, for example the borders of images. A static code pays
for them in every row. Here the probability of a zero in a column is estimated from the rows before, so that a column
without nonzero elements soon costs almost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing import ans_stack
from lightning_compress.packing.bit_patterns import Mask, num_columns_of
from lightning_compress.packing.encoding_types import PositionEncoding
from lightning_compress.packing.streams import EncodingPlan, Stream, checked_int, checked_parameters

# Probabilities are integers in units of 1/65536. The decoder repeats the estimates of the encoder, and one bit of
# difference, which floating point may have from one machine to another, would garble the rest of the stream.
_ONE = 2**16
_QUARTER_OCTAVES = (1024, 1218, 1448, 1722)  # 1024 * 2 ** (k / 4), rounded


def _probability_levels() -> NDArray[np.int64]:
    """Return the quantized probabilities of a zero: odds from 2**-14 to 2**14 in steps of a quarter of an octave."""
    # Steps in log-odds, not in probability: the cost of a wrong estimate depends on its ratio, and the columns that
    # matter are those with probabilities close to 0 and 1.
    odds = [_QUARTER_OCTAVES[k % 4] << (k // 4) for k in range(57)]
    above = [_ONE * odd // (odd + 1024) for odd in odds]
    return np.array([*(_ONE - p for p in reversed(above[1:])), *above])


_LEVELS = _probability_levels()
_LEVEL_OF = np.searchsorted((_LEVELS[1:] + _LEVELS[:-1]) // 2, np.arange(_ONE + 1)).astype(np.uint8)
_MODELS = [ans_stack.Categorical(np.array([p, _ONE - p], dtype=np.float64), perfect=False) for p in _LEVELS.tolist()]
_BITS_OF_ZERO, _BITS_OF_ONE = -np.log2(_LEVELS / _ONE), -np.log2(1 - _LEVELS / _ONE)
# With fewer rows the model has nothing to learn from, and with one column nothing to distinguish.
_MIN_ROWS, _MIN_COLUMNS = 4, 2
_STRENGTHS = (1, 4, 16)  # weights of the prior, in rows


class _Prior(NamedTuple):
    """Prior of the sparsity of a column: ``strength`` rows with the sparsity of the whole tensor."""

    strength: int
    sparsity: int  # in units of 1/65536

    def levels(self, num_zeros: NDArray[np.int64], num_rows: Any) -> NDArray[np.uint8]:
        """Return the index of the posterior mean of each column among the quantized probabilities."""
        return _LEVEL_OF[(num_zeros * _ONE + self.strength * self.sparsity) // (num_rows + self.strength)]


def _plan(nonzero: Mask, shape: tuple[int, ...]) -> EncodingPlan | None:
    num_columns = num_columns_of(shape)
    rows = nonzero.reshape(-1, num_columns)
    if len(rows) < _MIN_ROWS or num_columns < _MIN_COLUMNS:
        return None
    blocks = list(_row_blocks(len(rows)))
    heights = np.array([[stop - start] for start, stop in blocks])
    zeros = heights - np.stack([rows[start:stop].sum(axis=0, dtype=np.int64) for start, stop in blocks])
    bits, prior, levels = _best_prior(blocks, heights, zeros)
    return EncodingPlan(bits / 8 + 4, lambda: [Stream(COLUMN_MASK.kind, _encode(rows, blocks, levels), tuple(prior))])


def _best_prior(
    blocks: list[tuple[int, int]], heights: NDArray[np.int64], zeros: NDArray[np.int64]
) -> tuple[float, _Prior, NDArray[np.uint8]]:
    """Return the size in bits, the prior and the levels per block and column, of the prior with the smallest size."""
    before = np.cumsum(zeros, axis=0) - zeros
    starts = np.array([[start] for start, _ in blocks])
    num_elements = int(heights.sum()) * zeros.shape[1]
    # Neither 0 nor 1: an event of probability zero cannot be coded.
    sparsity = min(max(int(zeros.sum()) * _ONE // num_elements, 1), _ONE - 1)
    candidates = []
    for strength in _STRENGTHS:
        prior = _Prior(strength, sparsity)
        levels = prior.levels(before, starts)
        # The size follows from the counts alone, so that nothing is coded for plans that are not carried out.
        bits = float((zeros * _BITS_OF_ZERO[levels] + (heights - zeros) * _BITS_OF_ONE[levels]).sum())
        candidates.append((bits, prior, levels))
    return min(candidates, key=lambda candidate: candidate[0])


def _encode(rows: Mask, blocks: list[tuple[int, int]], levels: NDArray[np.uint8]) -> bytes:
    stack = ans_stack.AnsCoder()
    # Last in, first out: blocks and groups of columns are pushed in the reverse of the order of decoding.
    for (start, stop), row in zip(reversed(blocks), levels[::-1], strict=True):
        block = np.ascontiguousarray(rows[start:stop].T)
        for level, columns in reversed(list(_columns_by_level(row))):
            ans_stack.push(stack, block[columns].reshape(-1), _MODELS[level])
    return ans_stack.bytes_of(stack)


def _read(stream: Stream, shape: tuple[int, ...]) -> Mask:
    size, num_columns = math.prod(shape), num_columns_of(shape)
    strength, sparsity = checked_parameters(2, stream.parameters)
    prior = _Prior(checked_int(strength, at_least=1, at_most=_ONE), checked_int(sparsity, at_least=1, at_most=_ONE - 1))
    # As few rows as are never written, with their many columns, would take a lot of memory for counts.
    if size < _MIN_ROWS * num_columns or num_columns < _MIN_COLUMNS:
        raise ValueError(f"{size} elements in rows of {num_columns} do not have a mask by columns")
    nonzero = np.empty((size // num_columns, num_columns), np.bool_)
    stack, zeros_before = ans_stack.stack_of(stream.data), np.zeros(num_columns, np.int64)
    for start, stop in _row_blocks(len(nonzero)):
        block = np.empty((num_columns, stop - start), np.uint8)
        for level, columns in _columns_by_level(prior.levels(zeros_before, start)):
            symbols = ans_stack.pop(stack, len(columns) * (stop - start), _MODELS[level], np.uint8)
            block[columns] = symbols.reshape(-1, stop - start)
        nonzero[start:stop] = block.T
        zeros_before += (stop - start) - block.sum(axis=1, dtype=np.int64)
    ans_stack.check_empty(stack)
    return nonzero.reshape(-1)


def _row_blocks(num_rows: int) -> Iterator[tuple[int, int]]:
    """Yield start and stop of blocks of rows, each a quarter of the number of rows before it."""
    # Updates per row would be a Python loop over all rows. Growing blocks need a logarithmic number of updates, and
    # estimates change little over a block because it adds at most a quarter to the counts.
    start = 0
    while start < num_rows:
        stop = min(start + max(start // 4, 1), num_rows)
        yield start, stop
        start = stop


def _columns_by_level(levels: NDArray[np.uint8]) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield each probability level in use and its columns, which one call of the coder takes together."""
    # Stable: encoder and decoder must agree on the order of columns within a level.
    order = np.argsort(levels, kind="stable")
    ends = np.cumsum(np.bincount(levels, minlength=len(_MODELS)))
    for level in np.flatnonzero(np.diff(ends, prepend=0)):
        yield int(level), order[ends[level - 1] if level else 0 : ends[level]]


COLUMN_MASK = PositionEncoding(kind="columns", label="column-wise mask model", plan=_plan, read=_read)
