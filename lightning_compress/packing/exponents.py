"""Values with the most significant byte entropy-coded and the other bytes as they are, in one stream.

The most significant byte of a floating-point number holds the sign and exponent bits. In unclustered weights it takes
few values, very unequally often, whereas the bits of the mantissa are close to random and cannot be compressed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.encoding_types import ReadContext, ValueEncoding
from lightning_compress.packing.entropy import ANS
from lightning_compress.packing.streams import EncodingPlan, Stream, checked_parameters
from lightning_compress.packing.unique import unique_patterns

_HEADER_BYTES = 10  # of a stream that is unlike that of the tensor before, in the header of the file


def _plan(values: BitPatterns) -> EncodingPlan | None:
    if values.ndim > 1 or values.itemsize < 2:
        return None
    value_bytes = values.view(np.uint8).reshape(-1, values.itemsize)
    # The last byte in memory, because bit patterns are little-endian.
    found = unique_patterns(np.ascontiguousarray(value_bytes[:, -1]))
    if found is None:
        return None
    entries, indices = found
    counts = np.bincount(indices, minlength=len(entries))
    lower = value_bytes[:, :-1]

    def make() -> list[Stream]:
        head = bytes([len(entries) - 1]) + entries.tobytes()
        return [Stream(EXPONENTS.kind, head + ANS.encode(indices, counts) + lower.tobytes())]

    return EncodingPlan(_HEADER_BYTES + 1 + len(entries) + ANS.num_bytes(counts) + lower.size, make)


def _read(stream: Stream, streams: Iterator[Stream], context: ReadContext) -> BitPatterns:
    checked_parameters(0, stream.parameters)
    like, count, data = context.like, context.count, stream.data
    if like.itemsize < 2:
        raise ValueError("values of this width cannot be split into bytes")
    start = 2 + data[0] if data else 1
    stop = len(data) - count * (like.itemsize - 1)
    if stop < start:
        raise ValueError(f"{len(data)} bytes cannot hold {count} values and their exponents")
    entries = np.frombuffer(data, np.uint8, start - 1, 1)
    value_bytes = np.empty((count, like.itemsize), np.uint8)
    value_bytes[:, :-1] = np.frombuffer(data, np.uint8, offset=stop).reshape(count, -1)
    value_bytes[:, -1] = entries[ANS.decode(data[start:stop], count, len(entries))]
    return value_bytes.reshape(-1).view(like.dtype)


EXPONENTS = ValueEncoding(kind="exponents", label="coded exponents", plan=_plan, read=_read)
