"""One codebook for all values of a tensor, stored as the differences between its sorted bit patterns.

The order of the entries is no information, and neighboring entries share the bits of their exponents. Each difference
is stored as its length in bits and the bits after the leading one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.encoding_types import ReadContext
from lightning_compress.packing.index_streams import SharedEntries
from lightning_compress.packing.indexed_values import CodebookEncoding, IndexedValues, NonzeroValues
from lightning_compress.packing.streams import Stream, checked_parameters

_MAX_ENTRIES = 2**12  # beyond, a codebook is a small part of its tensor
_MIN_BYTES = 5  # of a number of entries in either form, and the lengths
_MAX_BYTES = 2**16


def plan_sorted_codebook(entries: BitPatterns) -> Stream | None:
    """Return the stream of a codebook with ascending entries, or ``None`` if the encoding does not apply.

    Args:
        entries: Distinct bit patterns in ascending order, as unsigned integers.
    """
    if entries.ndim > 1 or entries.dtype.kind != "u" or not 0 < len(entries) <= _MAX_ENTRIES:
        return None
    data = _encode(entries.tolist())
    return Stream(SORTED_CODEBOOK.kind, data) if len(data) >= _MIN_BYTES else None


def _encode(entries: list[int]) -> bytes:
    # From -1, so that no difference is zero although an entry may be.
    differences = [after - before for before, after in zip([-1, *entries], entries, strict=False)]
    lengths = [difference.bit_length() for difference in differences]
    shortest = min(lengths)
    width = (max(lengths) - shortest).bit_length()
    bits, place = 0, 0
    for difference, length in zip(differences, lengths, strict=True):
        mantissa = difference ^ (1 << (length - 1))
        bits |= ((mantissa << width) | (length - shortest)) << place
        place += width + length - 1
    # The first byte is the number of entries, or 0 if two more bytes hold it.
    count = bytes([len(entries)]) if len(entries) < 256 else b"\0" + len(entries).to_bytes(2, "little")
    return count + bytes([shortest, width]) + bits.to_bytes(-(-place // 8), "little")


def _decode(data: bytes, max_length: int) -> list[int]:
    start = 1 if data[0] else 3
    num_entries = data[0] or int.from_bytes(data[1:3], "little")
    shortest, width = data[start : start + 2]
    bits, num_bits = int.from_bytes(data[start + 2 :], "little"), 8 * (len(data) - start - 2)
    entries, last, place = [], -1, 0
    for _ in range(num_entries):
        length = shortest + (bits >> place & ((1 << width) - 1))
        place += width
        if not 1 <= length <= max_length + 1 or place + length - 1 > num_bits:
            raise ValueError("a sorted codebook is damaged")
        last += (1 << (length - 1)) | (bits >> place & ((1 << (length - 1)) - 1))
        place += length - 1
        entries.append(last)
    return entries


def _read_entries(stream: Stream, context: ReadContext) -> SharedEntries:
    checked_parameters(0, stream.parameters)
    like, size = context.like, 8 * context.like.itemsize
    if not _MIN_BYTES <= len(stream.data) <= _MAX_BYTES:
        raise ValueError("a sorted codebook is damaged")
    entries = _decode(stream.data, size)
    # Encoded again: the checksum covers the tensor, not unused bits, and every entry must fit its type.
    if not entries or entries[-1] >> size or _encode(entries) != stream.data:
        raise ValueError("a sorted codebook is damaged")
    return SharedEntries(np.array(entries, f"<u{like.itemsize}").view(like.dtype))


def _index(values: NonzeroValues, previous: Sequence[IndexedValues]) -> IndexedValues | None:
    return None  # the indices are those of a plain codebook, which takes this form where that is shorter


SORTED_CODEBOOK = CodebookEncoding(kind="sorted", label="sorted codebook", index=_index, read_entries=_read_entries)
