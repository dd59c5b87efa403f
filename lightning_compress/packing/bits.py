"""Symbols in a fixed number of bits each, or entropy-coded, whichever is shorter."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing import entropy
from lightning_compress.packing.streams import EncodingPlan, Stream, whole

_AT_ONCE = 2**18


def width_of(num_values: int) -> int:
    """Bits that tell so many values apart."""
    return max(num_values - 1, 0).bit_length()


def num_packed_bytes(num_symbols: int, num_values: int) -> int:
    """Bytes of so many symbols in a fixed number of bits each."""
    return -(-num_symbols * width_of(num_values) // 8)


def pack(symbols: NDArray[Any], num_values: int) -> bytes:
    """Symbols one after another, lowest bits first."""
    width = width_of(num_values)
    if width in (8, 16):
        return symbols.astype(f"<u{width // 8}").tobytes()
    places = np.arange(width, dtype=np.uint32)
    parts = [symbols[start : start + _AT_ONCE].astype(np.uint32) for start in range(0, len(symbols), _AT_ONCE)]
    # Parts of 2**18 symbols fill whole bytes.
    return b"".join(np.packbits((p[:, None] >> places) & 1, bitorder="little").tobytes() for p in parts)


def unpack(data: bytes, *, num_symbols: int, num_values: int) -> NDArray[Any]:
    """The symbols that :func:`pack` packed, in the narrowest unsigned type.

    Raises:
        ValueError: If the bytes are not as many, or a symbol is not below ``num_values``.
    """
    width, dtype = width_of(num_values), np.min_scalar_type(max(num_values - 1, 0))
    if len(data) != num_packed_bytes(num_symbols, num_values):
        raise ValueError(f"{len(data)} bytes do not hold {num_symbols} symbols of {width} bits")
    check_padding(data, num_symbols * width)
    symbols = np.zeros(num_symbols, dtype)
    for start in range(0, num_symbols if width else 0, _AT_ONCE):
        part = symbols[start : start + _AT_ONCE]
        begin = start * width // 8
        raw = np.frombuffer(data, np.uint8, num_packed_bytes(len(part), num_values), begin)
        flat = np.unpackbits(raw, count=len(part) * width, bitorder="little").reshape(-1, width)
        for place in range(width):
            part |= flat[:, place].astype(dtype) << dtype.type(place)
    if num_symbols and int(symbols.max()) >= num_values:
        raise ValueError(f"a symbol is beyond the {num_values} that there are")
    return symbols


def check_padding(data: bytes, num_bits: int) -> None:
    """Raises a ``ValueError`` if a bit is set after the last of so many that fill all bytes but the last."""
    if num_bits % 8 and data[-1] >> (num_bits % 8):
        raise ValueError("there are bits after the last one")


def plan_symbols(kind: str, symbols: Any, counts: NDArray[Any], *parameters: int | str) -> EncodingPlan:
    """The shorter of both codings of some symbols.

    Args:
        kind: Of the stream.
        symbols: Returns the symbols, when they are needed.
        counts: How often each occurs.
        parameters: Of the stream, before its coding.
    """
    total = int(counts.sum())
    fixed, coded = num_packed_bytes(total, len(counts)), entropy.num_bytes(counts)
    if fixed <= coded or len(counts) > entropy.MOST_SYMBOLS:
        return EncodingPlan(fixed, lambda: [Stream(kind, pack(symbols(), len(counts)), (*parameters, "bits"))])
    return EncodingPlan(coded, lambda: [Stream(kind, entropy.encode(symbols(), counts), (*parameters, "ans"))])


def read_symbols(data: bytes, coding: object, *, num_symbols: int, num_values: int) -> NDArray[Any]:
    """The symbols of a stream that :func:`plan_symbols` planned.

    Raises:
        ValueError: If it is damaged.
    """
    if coding == "bits":
        return unpack(data, num_symbols=num_symbols, num_values=num_values)
    if coding != "ans":
        raise ValueError(f"there is no coding {str(coding)[:40]!r}")
    whole(num_values, at_most=entropy.MOST_SYMBOLS)
    return entropy.decode(data, num_symbols=num_symbols, num_values=num_values)
