"""Values with the most significant byte entropy-coded and the other bytes as they are, in four streams.

Only files of versions 1 and 2 have it; :mod:`lightning_compress.packing.exponents` takes one stream.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.codebooks import CODEBOOK
from lightning_compress.packing.encoding_types import ReadContext, ValueEncoding
from lightning_compress.packing.index_streams import INDICES
from lightning_compress.packing.streams import EncodingPlan, Stream, next_stream


def _plan(values: BitPatterns) -> EncodingPlan | None:
    return None


def _read(stream: Stream, streams: Iterator[Stream], context: ReadContext) -> BitPatterns:
    like, count = context.like, context.count
    if like.itemsize < 2:
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
    if (codebook.kind, indices.kind) != (CODEBOOK.kind, INDICES.kind):
        raise ValueError("a codebook and indices must follow split values")
    return INDICES.read(indices, CODEBOOK.read_entries(codebook, context), context)


SPLIT = ValueEncoding(kind="split", label="coded exponents, four streams", plan=_plan, read=_read)
