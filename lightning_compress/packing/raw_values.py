"""Values as their bytes in memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.encoding_types import ReadContext, ValueEncoding
from lightning_compress.packing.streams import EncodingPlan, Stream


def _plan(values: BitPatterns) -> EncodingPlan:
    return EncodingPlan(values.nbytes, lambda: [Stream(RAW.kind, values.tobytes())])


def _read(stream: Stream, streams: Iterator[Stream], context: ReadContext) -> BitPatterns:
    # A view of the bytes of the file, so that scattering sparse values copies them only once.
    like = context.like
    if len(stream.data) != context.count * like.nbytes:
        raise ValueError(f"{len(stream.data)} bytes cannot hold {context.count} values of {like.nbytes} bytes")
    return np.frombuffer(stream.data, like.dtype).reshape(-1, *like.shape[1:])


RAW = ValueEncoding(kind="raw", label="dense", plan=_plan, read=_read)
