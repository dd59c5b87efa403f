"""Values with the most significant byte entropy-coded and the other bytes as they are.

The most significant byte of a floating-point number holds the sign and exponent bits. In unclustered weights it takes
few values, very unequally often, whereas the bits of the mantissa are close to random and cannot be compressed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.codebooks import CODEBOOK, with_codebook
from lightning_compress.packing.encoding_types import ReadContext, ValueEncoding
from lightning_compress.packing.index_streams import INDICES
from lightning_compress.packing.raw_values import RAW
from lightning_compress.packing.sorted_codebooks import SORTED_CODEBOOK
from lightning_compress.packing.streams import EncodingPlan, Stream, next_stream
from lightning_compress.packing.unique import unique_patterns

_CODEBOOKS = {encoding.kind: encoding for encoding in (CODEBOOK, SORTED_CODEBOOK)}
_HEADER_BYTES = 24  # of three more streams in the header of the file


def _plan(values: BitPatterns) -> EncodingPlan | None:
    if values.ndim > 1 or values.itemsize < 2:
        return None
    value_bytes = values.view(np.uint8).reshape(-1, values.itemsize)
    found = unique_patterns(np.ascontiguousarray(value_bytes[:, -1]))
    if found is None:
        return None
    # The last byte in memory, because bit patterns are little-endian.
    upper = with_codebook(*found)
    lower = EncodingPlan(value_bytes[:, :-1].size, lambda: [Stream(RAW.kind, value_bytes[:, :-1].tobytes())])
    return EncodingPlan(_HEADER_BYTES, lambda: [Stream(SPLIT.kind, b"")]) + upper.plan() + lower


def _read(stream: Stream, streams: Iterator[Stream], context: ReadContext) -> BitPatterns:
    like, count = context.like, context.count
    if like.ndim > 1 or like.itemsize < 2:
        raise ValueError("values of this width cannot be split into bytes")
    of_bytes = ReadContext(np.zeros(1, np.uint8), count, context.nonzero, context.shape)
    upper = _read_upper(next_stream(streams), next_stream(streams), of_bytes)
    lower = next_stream(streams).data
    if len(lower) != count * (like.itemsize - 1):
        raise ValueError(f"{len(lower)} bytes cannot hold the lower bytes of {count} values")
    value_bytes = np.empty((count, like.itemsize), np.uint8)
    value_bytes[:, :-1] = np.frombuffer(lower, np.uint8).reshape(count, -1)
    value_bytes[:, -1] = upper
    return value_bytes.reshape(-1).view(like.dtype)


def _read_upper(codebook: Stream, indices: Stream, context: ReadContext) -> BitPatterns:
    # Nothing else is ever written here, and fewer combinations are fewer to defend against damaged files.
    if codebook.kind not in _CODEBOOKS or indices.kind != INDICES.kind:
        raise ValueError("a codebook and indices must follow split values")
    return INDICES.read(indices, _CODEBOOKS[codebook.kind].read_entries(codebook, context), context)


SPLIT = ValueEncoding(kind="split", label="coded exponents", plan=_plan, read=_read)
