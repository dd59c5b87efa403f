"""Where a sparse tensor is not zero: a bit for each element, gaps between nonzeros, or a model of the columns."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bits import check_padding, num_packed_bytes, plan_symbols, read_symbols
from lightning_compress.packing.column_masks import plan_column_masks, read_column_masks
from lightning_compress.packing.streams import EncodingPlan, Stream, cheapest, exactly, whole

KINDS = ("bitmask", "gaps", "columns")
_LONGEST = 255  # a gap that is longer is so many zeros more often; a geometric distribution does not mind
_WIDTHS = (3, 4, 6, 8)


def plan_positions(nonzero: NDArray[np.bool_], num_columns: int) -> tuple[EncodingPlan, int]:
    """The cheapest way to say where a flat mask is true, and the bytes of the cheapest without entropy coding.

    The latter is a bit for each element, or gaps of a fixed width as in Deep Compression (Han et al. 2016,
    arXiv:1510.00149).

    Args:
        nonzero: The mask.
        num_columns: Length of its rows.
    """
    gaps = _gaps(nonzero)
    plan = cheapest(_plan_gaps(gaps), _plan_bitmask(nonzero), plan_column_masks(nonzero, num_columns))
    longest = [2**width - 1 for width in _WIDTHS]
    plain = (num_packed_bytes(len(gaps) + int((gaps // n).sum(dtype=np.int64)), n + 1) for n in longest)
    return plan, min(-(-len(nonzero) // 8), *plain)


def read_positions(
    kind: str, data: bytes, parameters: tuple[object, ...], *, size: int, num_columns: int
) -> NDArray[np.bool_]:
    """The mask that a stream says.

    Args:
        kind: One of :data:`KINDS`.
        data: Its bytes.
        parameters: Its parameters.
        size: Length of the mask.
        num_columns: Length of its rows.

    Raises:
        ValueError: If it is damaged.
    """
    if kind == "columns":
        return read_column_masks(data, parameters, size, num_columns)
    if kind == "gaps":
        return _read_gaps(data, parameters, size)
    if len(data) != -(-size // 8):
        raise ValueError(f"{len(data)} bytes are no mask of {size} elements")
    check_padding(data, size)
    return np.unpackbits(np.frombuffer(data, np.uint8), count=size, bitorder="little").astype(np.bool_)


def _plan_bitmask(nonzero: NDArray[np.bool_]) -> EncodingPlan:
    def make() -> list[Stream]:
        return [Stream("bitmask", np.packbits(nonzero, bitorder="little").tobytes())]

    return EncodingPlan(-(-len(nonzero) // 8), make)


def _gaps(nonzero: NDArray[np.bool_]) -> NDArray[Any]:
    """How many zeros are before each nonzero."""
    places = np.flatnonzero(nonzero).astype(np.int32 if len(nonzero) < 2**31 else np.int64)
    gaps = places.copy()
    gaps[1:] -= places[:-1]
    gaps[1:] -= 1
    return gaps


def _plan_gaps(gaps: NDArray[Any]) -> EncodingPlan:
    longest = min(_LONGEST, int(gaps.max(initial=0)) + 1)
    symbols = _split(gaps, longest)
    counts = np.bincount(symbols, minlength=longest + 1)
    return plan_symbols("gaps", lambda: symbols, counts, len(symbols), longest)


def _split(gaps: NDArray[Any], longest: int) -> NDArray[Any]:
    """Gaps as symbols below ``longest``, each after as many ``longest`` as it takes."""
    if gaps.max(initial=0) < longest:
        return gaps.astype(np.uint8)
    skips, rest = np.divmod(gaps, longest)
    symbols = np.full(len(gaps) + int(skips.sum(dtype=np.int64)), longest, np.uint8)
    symbols[np.cumsum(skips + 1) - 1] = rest
    return symbols


def _read_gaps(data: bytes, parameters: tuple[object, ...], size: int) -> NDArray[np.bool_]:
    claimed, limit, coding = exactly(3, parameters)
    num_symbols, longest = whole(claimed, at_most=size), whole(limit, at_least=1, at_most=_LONGEST)
    symbols = read_symbols(data, coding, num_symbols=num_symbols, num_values=longest + 1)
    ends = symbols < longest
    places = np.cumsum(symbols + ends, dtype=np.int64)
    if num_symbols and places[-1] > size:
        raise ValueError(f"positions go beyond the {size} elements")
    nonzero = np.zeros(size, np.bool_)
    nonzero[places[ends] - 1] = True
    return nonzero
