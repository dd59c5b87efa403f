"""Registry of symbol coders, and the choice of the cheapest one for a stream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from lightning_compress.packing.entropy import ANS
from lightning_compress.packing.fixed_width import FIXED_WIDTH
from lightning_compress.packing.streams import EncodingPlan, Stream

SYMBOL_CODERS = (FIXED_WIDTH, ANS)
"""Symbol coders; of several with the same size the first is chosen."""

_BY_KIND = {coder.kind: coder for coder in SYMBOL_CODERS}


def plan_symbols(
    kind: str, symbols: Callable[[], NDArray[Any]], counts: NDArray[Any], *parameters: int | str
) -> EncodingPlan:
    """Return the plan of a stream of symbols with the cheapest coder.

    Args:
        kind: Kind of the stream.
        symbols: Returns the symbols; called only if the plan is carried out.
        counts: Number of occurrences of each symbol.
        parameters: Parameters of the stream; the kind of the coder is appended.
    """
    # Entropy coding loses for few symbols, because its table and final state take bytes of their own.
    num_bytes, coder = min(((c.num_bytes(counts), c) for c in SYMBOL_CODERS), key=lambda pair: pair[0])
    return EncodingPlan(num_bytes, lambda: [Stream(kind, coder.encode(symbols(), counts), (*parameters, coder.kind))])


def read_symbols(data: bytes, coder: object, *, num_symbols: int, num_values: int) -> NDArray[Any]:
    """Return the symbols of a stream that :func:`plan_symbols` planned.

    Raises:
        ValueError: If the coder is unknown or the data are damaged.
    """
    found = _BY_KIND.get(coder) if isinstance(coder, str) else None
    if found is None:
        raise ValueError(f"unknown symbol coder {str(coder)[:40]!r}")
    return found.decode(data, num_symbols, num_values)
