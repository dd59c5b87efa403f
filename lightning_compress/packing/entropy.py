"""Static entropy coding of symbols by an asymmetric numeral system, with the table of frequencies in the stream."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.ans_stack import AnsCoder, Categorical, bytes_of, check_empty, pop, push, stack_of
from lightning_compress.packing.encoding_types import SymbolCoder
from lightning_compress.packing.streams import checked_int

_MAX_VALUES = 2**16

# Frequencies of the differences between neighboring codes, modulo 256. Neighboring symbols of a codebook occur about
# equally often, except for a few jumps, hence weights with the tails of a Cauchy distribution; the 1 keeps every
# difference possible. All weights are integers, which are exact in floating point on every machine.
_DIFFERENCES = 2.0**16 // (16 + np.minimum(np.arange(256), 256 - np.arange(256)) ** 2) + 1
_DIFFERENCE_MODEL = Categorical(_DIFFERENCES, perfect=False)
_DIFFERENCE_BITS = np.log2(_DIFFERENCES.sum() / _DIFFERENCES)


def rounded(counts: NDArray[Any]) -> NDArray[np.uint8]:
    """Round counts to 8-bit codes: a number of halvings and the four leading bits.

    >>> frequencies(rounded(np.array([0, 7, 100, 1000]))).tolist()
    [0, 7, 104, 1024]
    """
    # Four bits suffice: the Kullback-Leibler divergence is quadratic in the error, so relative errors of at most 1/16
    # cost at most 0.003 bits per symbol, whereas an exact table would take 4 bytes per entry.
    counts = counts.astype(np.int64)
    halvings = np.maximum(np.frexp(counts.astype(np.float64))[1] - 4, 0)
    # Rounding up to 16 needs no special case: 8 * halvings + 16 is the code of 8 with one more halving.
    leading = (counts + (1 << halvings >> 1)) >> halvings
    return (8 * halvings + leading).astype(np.uint8)


def frequencies(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Return the counts that 8-bit codes stand for; the inverse of :func:`rounded` up to rounding."""
    wide = codes.astype(np.int64)
    return np.where(wide < 16, wide, (wide % 8 + 8) << np.maximum(wide // 8 - 1, 0))


def num_bytes(counts: NDArray[Any]) -> float:
    """Return the size of the output of :func:`encode` for symbols with these counts, exact to within a word."""
    if len(counts) > _MAX_VALUES:
        return math.inf
    if len(counts) < 2:
        return 0.0
    codes = rounded(counts)
    table = frequencies(codes).astype(np.float64)
    used = counts > 0
    # Cross entropy of the true counts under the rounded ones, plus the table itself and the final state of the coder.
    bits = -(counts[used] * np.log2(table[used] / table.sum())).sum()
    return float(bits + _DIFFERENCE_BITS[_differences(codes, counts.sum())].sum()) / 8 + 2


def encode(symbols: NDArray[Any], counts: NDArray[Any]) -> bytes:
    """Code symbols from 0 to ``len(counts) - 1``, the k-th of which occurs ``counts[k]`` times."""
    stack = AnsCoder()
    push_symbols(stack, symbols, counts)
    return bytes_of(stack)


def push_symbols(stack: Any, symbols: NDArray[Any], counts: NDArray[Any]) -> None:
    """Push symbols and the table of their frequencies, the last in first out."""
    if len(counts) < 2 or not len(symbols):
        return
    codes = rounded(counts)
    # The decoder needs the table before the symbols.
    push(stack, symbols, Categorical(frequencies(codes).astype(np.float64), perfect=False))
    push(stack, _differences(codes, len(symbols)), _DIFFERENCE_MODEL)


def decode(data: bytes, num_symbols: int, num_values: int) -> NDArray[Any]:
    """Return the symbols that :func:`encode` coded, in the narrowest unsigned type.

    Raises:
        ValueError: If the bytes are damaged.
    """
    checked_int(num_values, at_most=_MAX_VALUES)
    if num_values < 2 or not num_symbols:
        return np.zeros(num_symbols, np.min_scalar_type(max(num_values - 1, 0)))
    stack = stack_of(data)
    symbols = pop_symbols(stack, num_symbols, num_values)
    check_empty(stack)
    return symbols


def pop_symbols(stack: Any, num_symbols: int, num_values: int) -> NDArray[Any]:
    """Return the symbols that :func:`push_symbols` pushed, in the narrowest unsigned type.

    Raises:
        ValueError: If the stack is damaged.
    """
    dtype = np.min_scalar_type(max(num_values - 1, 0))
    if num_values < 2 or not num_symbols:
        return np.zeros(num_symbols, dtype)
    codes = (_first_code(num_symbols, num_values) + np.cumsum(stack.decode(_DIFFERENCE_MODEL, num_values))) % 256
    table = frequencies(codes.astype(np.uint8)).astype(np.float64)
    # A damaged table can be all zeros. Its sum is exact in float64: at most 2**16 frequencies, all below 2**34.
    if not table.any():
        raise ValueError("the frequencies of an entropy-coded stream are invalid")
    return pop(stack, num_symbols, Categorical(table, perfect=False), dtype)


def _differences(codes: NDArray[np.uint8], num_symbols: int) -> NDArray[Any]:
    # Unsigned bytes wrap around, which is the modulo 256 of the model.
    return np.diff(codes, prepend=_first_code(num_symbols, len(codes)))


def _first_code(num_symbols: int, num_values: int) -> np.uint8:
    """Return the code of the mean count, which both sides know, as the predecessor of the first code."""
    return rounded(np.array([num_symbols // num_values]))[0]


ANS = SymbolCoder(kind="ans", label="entropy-coded", num_bytes=num_bytes, encode=encode, decode=decode)
