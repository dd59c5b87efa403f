"""Stack of an asymmetric numeral system (ANS; Duda 2009, arXiv:0902.0271), as the constriction library keeps it."""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
from numpy.typing import NDArray

AnsCoder: Any = constriction.stream.stack.AnsCoder
Categorical: Any = constriction.stream.model.Categorical

_CHUNK = 2**20  # symbols that are widened to the 32 bits of the library at a time, which bounds memory


def push(stack: Any, symbols: NDArray[Any], model: Any) -> None:
    """Push symbols in reverse, so that the first one is popped first."""
    for end in range(len(symbols), 0, -_CHUNK):
        # The last chunk first, because a stack returns symbols in reverse.
        stack.encode_reverse(symbols[max(end - _CHUNK, 0) : end].astype(np.int32), model)


def pop(stack: Any, num_symbols: int, model: Any, dtype: Any) -> NDArray[Any]:
    """Pop ``num_symbols`` symbols into an array of the given type."""
    symbols = np.empty(num_symbols, dtype)
    for start in range(0, num_symbols, _CHUNK):
        chunk = symbols[start : start + _CHUNK]
        chunk[:] = stack.decode(model, len(chunk))
    return symbols


def bytes_of(stack: Any) -> bytes:
    """Return the contents of a stack as little-endian bytes."""
    return stack.get_compressed().astype("<u4").tobytes()


def stack_of(data: bytes) -> Any:
    """Return the stack from which :func:`bytes_of` made the bytes.

    Raises:
        ValueError: If no stack has these bytes.
    """
    words = np.frombuffer(data, "<u4") if len(data) % 4 == 0 else None
    # The top word is never zero: the library drops leading zeros, and would raise an error of its own here.
    if words is None or (len(words) and not words[-1]):
        raise ValueError("an entropy-coded stream is truncated or damaged")
    return AnsCoder(words.astype(np.uint32))


def check_empty(stack: Any) -> None:
    """Raise a ``ValueError`` if the stack has symbols left, or more were popped than had been pushed."""
    if not stack.is_empty():
        raise ValueError("an entropy-coded stream does not end after its last symbol")
