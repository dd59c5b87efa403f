"""Positions of nonzero elements as run lengths of zeros, as in Deep Compression (Han et al. 2016, arXiv:1510.00149)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import Mask
from lightning_compress.packing.encoding_types import PositionEncoding
from lightning_compress.packing.fixed_width import num_packed_bytes
from lightning_compress.packing.streams import EncodingPlan, Stream, checked_int, checked_parameters
from lightning_compress.packing.symbol_coders import plan_symbols, read_symbols

# A gap of g zeros is coded as g // limit times the symbol `limit`, then g % limit. Gaps of randomly pruned weights are
# geometrically distributed, hence memoryless, so that splitting the rare long ones costs next to nothing.
_MAX_LIMIT = 255
_CHUNK = 2**18  # symbols that are read at a time, which bounds memory
_FIXED_WIDTHS = (3, 4, 6, 8)  # bits per gap that are tried for the size without entropy coding


def _plan(nonzero: Mask, shape: tuple[int, ...]) -> EncodingPlan:
    gaps = _gaps(nonzero)
    limit = min(_MAX_LIMIT, int(gaps.max(initial=0)) + 1)
    symbols = _split_gaps(gaps, limit)
    counts = np.bincount(symbols, minlength=limit + 1)
    plan = plan_symbols(GAPS.kind, lambda: symbols, counts, len(symbols), limit)
    return replace(plan, num_fixed_bytes=_num_fixed_bytes(gaps))


def _num_fixed_bytes(gaps: NDArray[Any]) -> int:
    limits = [2**width - 1 for width in _FIXED_WIDTHS]
    return min(num_packed_bytes(len(gaps) + int((gaps // n).sum(dtype=np.int64)), n + 1) for n in limits)


def _gaps(nonzero: Mask) -> NDArray[Any]:
    """Return the number of zeros before each nonzero element; zeros after the last one are not counted."""
    positions = np.flatnonzero(nonzero).astype(np.int32 if len(nonzero) < 2**31 else np.int64)
    gaps = positions.copy()
    gaps[1:] -= positions[:-1]
    gaps[1:] -= 1
    return gaps


def _split_gaps(gaps: NDArray[Any], limit: int) -> NDArray[Any]:
    """Return gaps as symbols from 0 to ``limit``, where ``limit`` means as many zeros and no nonzero element yet."""
    if gaps.max(initial=0) < limit:
        return gaps.astype(np.uint8)
    skips, rest = np.divmod(gaps, limit)
    symbols = np.full(len(gaps) + int(skips.sum(dtype=np.int64)), limit, np.uint8)
    symbols[np.cumsum(skips + 1) - 1] = rest
    return symbols


def _read(stream: Stream, shape: tuple[int, ...]) -> Mask:
    size = math.prod(shape)
    claimed, claimed_limit, coder = checked_parameters(3, stream.parameters)
    num_symbols = checked_int(claimed, at_most=size)
    limit = checked_int(claimed_limit, at_least=1, at_most=_MAX_LIMIT)
    symbols = read_symbols(stream.data, coder, num_symbols=num_symbols, num_values=limit + 1)
    nonzero, end = np.zeros(size, np.bool_), 0
    # In chunks, because positions take 8 bytes for each byte of the symbols.
    for start in range(0, num_symbols, _CHUNK):
        chunk = symbols[start : start + _CHUNK]
        # Every symbol below the limit ends a gap and stands for one element more, the nonzero one.
        is_end = chunk < limit
        positions = end + np.cumsum(chunk + is_end, dtype=np.int64)
        end = int(positions[-1])
        if end > size:
            raise ValueError(f"positions exceed the {size} elements of the tensor")
        nonzero[positions[is_end] - 1] = True
    return nonzero


GAPS = PositionEncoding(kind="gaps", label="gaps", plan=_plan, read=_read)
