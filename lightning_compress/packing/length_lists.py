"""Lengths of streams in few bytes.

The lengths of streams of one kind are similar, so they are stored in as many bits as their range needs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

_WORD = 4  # bytes of which entropy-coded streams are multiples
_WIDE = 64  # flag of words, in the byte with the width
_MAX_WIDTH = 48


def pack_lengths(kinds: Sequence[str], lengths: Sequence[int]) -> bytes:
    """Return the bytes of lengths, each of a stream of some kind.

    >>> pack_lengths(["a", "b", "a"], [7, 1000, 8]).hex()
    '010740fa0102'
    """
    bits, place, heads = 0, 0, b""
    groups = {}
    for kind in dict.fromkeys(kinds):
        own = [length for each, length in zip(kinds, lengths, strict=True) if each == kind]
        unit = _WORD if all(length % _WORD == 0 for length in own) else 1
        smallest = min(own) // unit
        groups[kind] = unit, smallest, (max(own) // unit - smallest).bit_length()
    for unit, smallest, width in groups.values():
        heads += bytes([width | (_WIDE if unit > 1 else 0)]) + _varint(smallest)
    for kind, length in zip(kinds, lengths, strict=True):
        unit, smallest, width = groups[kind]
        bits |= (length // unit - smallest) << place
        place += width
    return heads + bits.to_bytes(-(-place // 8), "little")


def unpack_lengths(kinds: Sequence[str], data: bytes) -> list[int]:
    """Return the lengths from which :func:`pack_lengths` made the bytes.

    Raises:
        ValueError: If the bytes are damaged.
    """
    rest, groups = iter(data), {}
    for kind in dict.fromkeys(kinds):
        head = next(rest, _MAX_WIDTH + 1)
        width = head & ~_WIDE
        if width > _MAX_WIDTH:
            raise ValueError("the lengths of the index are damaged")
        groups[kind] = _WORD if head & _WIDE else 1, _read_varint(rest), width
    packed = bytes(rest)
    num_bits = sum(groups[kind][2] for kind in kinds)
    if len(packed) != -(-num_bits // 8):
        raise ValueError("the lengths of the index are damaged")
    # In bytes of eight bits each: shifts of one large integer would take quadratic time.
    lengths, window, filled, place = [], 0, 0, 0
    for kind in kinds:
        unit, smallest, width = groups[kind]
        while filled < width:
            window |= packed[place] << filled
            filled, place = filled + 8, place + 1
        lengths.append(unit * (smallest + (window & ((1 << width) - 1))))
        window >>= width
        filled -= width
    return lengths


def _varint(value: int) -> bytes:
    data = b""
    while value >= 128:
        data += bytes([value & 127 | 128])
        value >>= 7
    return data + bytes([value])


def _read_varint(data: Iterator[int]) -> int:
    value = 0
    for place in range(0, _MAX_WIDTH, 7):
        byte = next(data, None)
        if byte is None:
            break
        value |= (byte & 127) << place
        if byte < 128:
            return value
    raise ValueError("the lengths of the index are damaged")
