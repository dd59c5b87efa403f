"""Symbols in as many bits as they carry: asymmetric numeral systems (Duda 2009, arXiv:0902.0271) by constriction.

The frequencies that a decoder needs are on the same stack as the symbols: rounded to four significant bits, and of
those only the differences from one symbol to the next.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

AnsCoder: Any = constriction.stream.stack.AnsCoder
Categorical: Any = constriction.stream.model.Categorical

MOST_SYMBOLS = 2**16
_AT_ONCE = 2**20  # symbols that are widened to 32 bits together
# Differences of rounded frequencies are small, now and then large: weights of a heavy-tailed distribution, modulo 256.
_DIFFERENCES = 2.0**16 // (16 + np.minimum(np.arange(256), 256 - np.arange(256)) ** 2) + 1
_DIFFERENCE_MODEL = Categorical(_DIFFERENCES, perfect=False)
_DIFFERENCE_BITS = np.log2(_DIFFERENCES.sum() / _DIFFERENCES)


def rounded(counts: NDArray[Any]) -> NDArray[np.uint8]:
    """Counts as bytes: a number of halvings, and the four leading bits.

    >>> frequencies(rounded(np.array([0, 7, 100, 1000]))).tolist()
    [0, 7, 104, 1024]
    """
    counts = counts.astype(np.int64)
    halvings = np.maximum(np.frexp(counts.astype(np.float64))[1] - 4, 0)
    leading = (counts + (1 << halvings >> 1)) >> halvings
    return (8 * halvings + leading).astype(np.uint8)


def frequencies(codes: NDArray[np.uint8]) -> NDArray[np.int64]:
    """What rounded counts stand for."""
    wide = codes.astype(np.int64)
    return np.where(wide < 16, wide, (wide % 8 + 8) << np.maximum(wide // 8 - 1, 0))


def num_bytes(counts: NDArray[Any]) -> float:
    """How many bytes :func:`encode` takes for symbols of these counts, to within a word."""
    if len(counts) < 2:
        return 0.0
    codes = rounded(counts)
    table = frequencies(codes).astype(np.float64)
    used = counts > 0
    bits = -(counts[used] * np.log2(table[used] / table.sum())).sum()
    return float(bits + _DIFFERENCE_BITS[_differences(codes, counts.sum())].sum()) / 8 + 2


def encode(symbols: NDArray[Any], counts: NDArray[Any]) -> bytes:
    """Codes symbols from 0 to ``len(counts) - 1`` that occur so often each."""
    if len(counts) < 2 or not len(symbols):
        return b""
    codes = rounded(counts)
    stack = AnsCoder()
    push(stack, symbols, Categorical(frequencies(codes).astype(np.float64), perfect=False))
    push(stack, _differences(codes, len(symbols)), _DIFFERENCE_MODEL)
    return bytes_of(stack)


def decode(data: bytes, *, num_symbols: int, num_values: int) -> NDArray[Any]:
    """The symbols, in the narrowest unsigned type.

    Raises:
        ValueError: If the bytes are no such stream.
    """
    dtype = np.min_scalar_type(max(num_values - 1, 0))
    if num_values < 2 or not num_symbols:
        return np.zeros(num_symbols, dtype)
    stack = stack_of(data)
    first = int(rounded(np.array([num_symbols // num_values]))[0])
    codes = (first + np.cumsum(stack.decode(_DIFFERENCE_MODEL, num_values))) % 256
    table = frequencies(codes.astype(np.uint8)).astype(np.float64)
    if not 0 < table.sum() < 2**52:
        raise ValueError("the frequencies of an entropy-coded stream are none")
    symbols = pop(stack, num_symbols, Categorical(table, perfect=False), dtype)
    check_empty(stack)
    return symbols


def push(stack: Any, symbols: NDArray[Any], model: Any) -> None:
    """Puts symbols on the stack, the first one uppermost."""
    for end in range(len(symbols), 0, -_AT_ONCE):
        stack.encode_reverse(symbols[max(end - _AT_ONCE, 0) : end].astype(np.int32), model)


def pop(stack: Any, num_symbols: int, model: Any, dtype: Any) -> NDArray[Any]:
    """Takes symbols from the stack."""
    symbols = np.empty(num_symbols, dtype)
    for start in range(0, num_symbols, _AT_ONCE):
        part = symbols[start : start + _AT_ONCE]
        part[:] = stack.decode(model, len(part))
    return symbols


def bytes_of(stack: Any) -> bytes:
    """A stack as bytes, in an order that does not depend on the machine."""
    return stack.get_compressed().astype("<u4").tobytes()


def stack_of(data: bytes) -> Any:
    """The stack that :func:`bytes_of` wrote.

    Raises:
        ValueError: If it wrote no such bytes.
    """
    words = np.frombuffer(data, "<u4") if len(data) % 4 == 0 else None
    if words is None or (len(words) and not words[-1]):
        raise ValueError("an entropy-coded stream is cut or damaged")
    return AnsCoder(words.astype(np.uint32))


def check_empty(stack: Any) -> None:
    """Raises a ``ValueError`` if more was coded than was read, or less."""
    if not stack.is_empty():
        raise ValueError("an entropy-coded stream does not end where it should")


def _differences(codes: NDArray[np.uint8], num_symbols: int) -> NDArray[Any]:
    first = rounded(np.array([num_symbols // len(codes)]))
    return np.diff(codes, prepend=first)
