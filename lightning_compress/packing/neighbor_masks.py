"""Positions of nonzero elements by an adaptive model of the density of each row, channel and kernel."""

from __future__ import annotations

import numpy as np

from lightning_compress.packing.bit_patterns import Mask
from lightning_compress.packing.context_coding import ContextModel, SignedSymbols, decode, model_symbols
from lightning_compress.packing.encoding_types import PositionEncoding
from lightning_compress.packing.streams import EncodingPlan, Stream, checked_parameters

_MEANING = SignedSymbols(2, 0, with_zero=True)
_MIN_ELEMENTS = 64  # below which there is nothing to learn


def _plan(nonzero: Mask, shape: tuple[int, ...]) -> EncodingPlan | None:
    if len(nonzero) < _MIN_ELEMENTS:
        return None
    code = model_symbols(nonzero.view(np.uint8), ContextModel.of_neighbors(shape, 2), _MEANING)
    return EncodingPlan(code.num_bytes, lambda: [Stream(NEIGHBOR_MASK.kind, code.encode())])


def _read(stream: Stream, shape: tuple[int, ...]) -> Mask:
    checked_parameters(0, stream.parameters)
    return decode(stream.data, ContextModel.of_neighbors(shape, 2), _MEANING).view(np.bool_)


NEIGHBOR_MASK = PositionEncoding(kind="mask", label="mask coded by neighbors", plan=_plan, read=_read)
