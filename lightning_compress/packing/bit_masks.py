"""Positions of nonzero elements as one bit per element."""

from __future__ import annotations

import math

import numpy as np

from lightning_compress.packing.bit_patterns import Mask
from lightning_compress.packing.encoding_types import PositionEncoding
from lightning_compress.packing.fixed_width import check_padding
from lightning_compress.packing.streams import EncodingPlan, Stream


def _plan(nonzero: Mask, shape: tuple[int, ...]) -> EncodingPlan:
    def make() -> list[Stream]:
        return [Stream(BIT_MASK.kind, np.packbits(nonzero, bitorder="little").tobytes())]

    num_bytes = -(-len(nonzero) // 8)
    return EncodingPlan(num_bytes, make, num_fixed_bytes=num_bytes)


def _read(stream: Stream, shape: tuple[int, ...]) -> Mask:
    size = math.prod(shape)
    # The checksum covers the tensor, not the stream, so a damaged padding bit would go unnoticed without a check.
    if len(stream.data) != -(-size // 8):
        raise ValueError(f"{len(stream.data)} bytes cannot hold a bit mask of {size} elements")
    check_padding(stream.data, size)
    return np.unpackbits(np.frombuffer(stream.data, np.uint8), count=size, bitorder="little").astype(np.bool_)


BIT_MASK = PositionEncoding(kind="bitmask", label="bit mask", plan=_plan, read=_read)
