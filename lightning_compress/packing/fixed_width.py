"""Symbols in a fixed number of bits each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.encoding_types import SymbolCoder

_CHUNK = 2**18  # a multiple of 8, so that every chunk but the last fills whole bytes


def bit_width(num_values: int) -> int:
    """Return the number of bits of a symbol from 0 to ``num_values - 1``.

    >>> bit_width(16), bit_width(17), bit_width(1)
    (4, 5, 0)
    """
    return max(num_values - 1, 0).bit_length()


def num_packed_bytes(num_symbols: int, num_values: int) -> int:
    """Return the size of ``num_symbols`` packed symbols in bytes."""
    return -(-num_symbols * bit_width(num_values) // 8)


def pack(symbols: NDArray[Any], num_values: int) -> bytes:
    """Concatenate the bits of symbols, least significant bits first."""
    width = bit_width(num_values)
    if width in (8, 16):
        return symbols.astype(f"<u{width // 8}").tobytes()
    # Every bit becomes one byte before it is packed, so memory is bounded by packing in chunks.
    shifts = np.arange(width, dtype=np.uint32)
    chunks = [symbols[start : start + _CHUNK].astype(np.uint32) for start in range(0, len(symbols), _CHUNK)]
    return b"".join(np.packbits((c[:, None] >> shifts) & 1, bitorder="little").tobytes() for c in chunks)


def unpack(data: bytes, num_symbols: int, num_values: int) -> NDArray[Any]:
    """Return the symbols that :func:`pack` packed, in the narrowest unsigned type.

    Raises:
        ValueError: If the number of bytes is wrong, or a symbol is not below ``num_values``.
    """
    width, dtype = bit_width(num_values), np.min_scalar_type(max(num_values - 1, 0))
    if len(data) != num_packed_bytes(num_symbols, num_values):
        raise ValueError(f"{len(data)} bytes cannot hold {num_symbols} symbols of {width} bits")
    check_padding(data, num_symbols * width)
    symbols = np.zeros(num_symbols, dtype)
    for start in range(0, num_symbols if width else 0, _CHUNK):
        chunk = symbols[start : start + _CHUNK]
        raw = np.frombuffer(data, np.uint8, num_packed_bytes(len(chunk), num_values), start * width // 8)
        flat = np.unpackbits(raw, count=len(chunk) * width, bitorder="little").reshape(-1, width)
        # Column by column in the narrow type: a product with powers of two would widen every bit to 64 bits.
        for place in range(width):
            chunk |= flat[:, place].astype(dtype) << dtype.type(place)
    # A codebook need not have a power of two of entries, so the bits can name one that does not exist.
    if num_symbols and int(symbols.max()) >= num_values:
        raise ValueError(f"a symbol must be below {num_values}, the number of values, but is {int(symbols.max())}")
    return symbols


def check_padding(data: bytes, num_bits: int) -> None:
    """Raise a ``ValueError`` if a bit after the first ``num_bits`` is set in the last byte."""
    if num_bits % 8 and data[-1] >> (num_bits % 8):
        raise ValueError("the padding bits of the last byte must be zero")


FIXED_WIDTH = SymbolCoder(
    kind="bits",
    label="fixed width",
    num_bytes=lambda counts: num_packed_bytes(int(counts.sum()), len(counts)),
    encode=lambda symbols, counts: pack(symbols, len(counts)),
    decode=unpack,
)
