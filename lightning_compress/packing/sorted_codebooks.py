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
from lightning_compress.packing.streams import Stream, checked_int, checked_parameters

_MAX_ENTRIES = 2**12  # beyond, a codebook is a small part of its tensor


def plan_sorted_codebook(entries: BitPatterns) -> Stream | None:
    """Return the stream of a codebook with ascending entries, or ``None`` if the encoding does not apply.

    Args:
        entries: Distinct bit patterns in ascending order, as unsigned integers.
    """
    if entries.ndim > 1 or entries.dtype.kind != "u" or not 0 < len(entries) <= _MAX_ENTRIES:
        return None
    return Stream(SORTED_CODEBOOK.kind, _encode(entries.tolist()), (len(entries),))


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
    return bytes([shortest, width]) + bits.to_bytes(-(-place // 8), "little")


def _decode(data: bytes, num_entries: int, max_length: int) -> list[int]:
    shortest, width = data[:2]
    bits, num_bits = int.from_bytes(data[2:], "little"), 8 * len(data) - 16
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
    (claimed,) = checked_parameters(1, stream.parameters)
    like = context.like
    if like.ndim > 1 or len(stream.data) < 2 or stream.data[1] > 6:
        raise ValueError("a sorted codebook is damaged")
    num_entries, size = checked_int(claimed, at_least=1, at_most=_MAX_ENTRIES), 8 * like.itemsize
    entries = _decode(stream.data, num_entries, size)
    # Written again: the checksum covers the tensor, not unused bits, and every entry must fit its type.
    if entries[-1] >> size or _encode(entries) != stream.data:
        raise ValueError("a sorted codebook is damaged")
    return SharedEntries(np.array(entries, f"<u{like.itemsize}").view(like.dtype))


def _index(values: NonzeroValues, previous: Sequence[IndexedValues]) -> IndexedValues | None:
    return None  # the indices are those of a plain codebook, which takes this form where that is shorter


SORTED_CODEBOOK = CodebookEncoding(kind="sorted", label="sorted codebook", index=_index, read_entries=_read_entries)
