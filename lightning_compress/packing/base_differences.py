"""Values as differences to the same tensor of another file."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.byte_planes import decode_planes, encode_planes, plan_planes
from lightning_compress.packing.encoding_types import ReadContext, ValueEncoding
from lightning_compress.packing.streams import EncodingPlan, Stream, checked_parameters


def plan_difference(values: BitPatterns, base: BitPatterns) -> EncodingPlan | None:
    """Return the plan of all elements of a tensor, or ``None`` if the encoding does not apply.

    Args:
        values: Bit patterns.
        base: Bit patterns of the base, as many as ``values`` and of the same type.
    """
    if values.ndim > 1:
        return None
    differences = _fold(values - base)
    num_bytes = plan_planes(differences)
    return EncodingPlan(num_bytes, lambda: [Stream(DIFFERENCE.kind, encode_planes(differences))])


def _fold(differences: NDArray[Any]) -> NDArray[Any]:
    """Return differences modulo the range of their type as small integers: 0, -1, 1, -2 as 0, 1, 2, 3."""
    one, sign = differences.dtype.type(1), differences.dtype.type(8 * differences.itemsize - 1)
    return (differences << one) ^ (differences.dtype.type(0) - (differences >> sign))


def _unfold(folded: NDArray[Any]) -> NDArray[Any]:
    one = folded.dtype.type(1)
    return (folded >> one) ^ (folded.dtype.type(0) - (folded & one))


def _read(stream: Stream, streams: Iterator[Stream], context: ReadContext) -> BitPatterns:
    checked_parameters(0, stream.parameters)
    base = checked_base(context)
    if base.ndim > 1:
        raise ValueError("values of this width have no differences")
    return base + _unfold(decode_planes(stream.data, context.count, base.dtype))


def _read_unchanged(stream: Stream, streams: Iterator[Stream], context: ReadContext) -> BitPatterns:
    checked_parameters(0, stream.parameters)
    if stream.data:
        raise ValueError("the stream of an unchanged tensor must be empty")
    return checked_base(context)


def checked_base(context: ReadContext) -> BitPatterns:
    """Return the elements of the base.

    Raises:
        ValueError: If there is no base, or if it has another dtype or shape.
    """
    if context.base is None or context.nonzero is not None or len(context.base) != context.count:
        raise ValueError("it refers to a tensor that the base does not have")
    return context.base


DIFFERENCE = ValueEncoding(kind="difference", label="difference to the base", plan=lambda values: None, read=_read)
UNCHANGED = ValueEncoding(kind="unchanged", label="as in the base", plan=lambda values: None, read=_read_unchanged)
