"""Choice of the encodings with which one tensor takes the fewest bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from lightning_compress.packing.base_differences import UNCHANGED, plan_difference
from lightning_compress.packing.bit_patterns import BitPatterns, bit_patterns_of, is_nonzero, num_columns_of
from lightning_compress.packing.encodings import CODEBOOKS, INTEGER_CODEBOOKS, POSITIONS, VALUES
from lightning_compress.packing.indexed_values import (
    CodebookEncoding,
    IndexedValues,
    NonzeroIntegers,
    NonzeroValues,
)
from lightning_compress.packing.quantized_tensors import IntegerTensor, find_integers
from lightning_compress.packing.raw_values import RAW
from lightning_compress.packing.streams import EncodingPlan, Stream, cheapest
from lightning_compress.packing.vector_widths import candidate_widths

_HEADER_BYTES = 12  # of one more stream in the header of the file


@dataclass(frozen=True)
class EncodedTensor:
    """Streams of a packed tensor.

    Attributes:
        streams: Streams in the order of the file.
        width: Number of elements per codebook entry.
        integers: Integers that the streams hold, if the tensor is quantized.
        num_sparse_bytes: Size in bytes if zeros were left out and nothing else done.
        num_fixed_bytes: Size in bytes if values were indexed as well, all with a fixed number of bits.
    """

    streams: list[Stream]
    width: int
    integers: IntegerTensor | None
    num_sparse_bytes: int
    num_fixed_bytes: int


@dataclass(frozen=True)
class _Candidate:
    plan: EncodingPlan
    width: int
    num_sparse_bytes: int
    num_fixed_bytes: int


def encode_tensor(tensor: Tensor, scale: Tensor | None = None, base: Tensor | None = None) -> EncodedTensor:
    """Encode a tensor without loss of any bit.

    Args:
        tensor: Tensor of any shape, dtype and device; it is not modified.
        scale: Scale of the quantizer of the tensor, if it has one.
        base: Tensor of the same dtype and shape of another file, if there is one.
    """
    if not tensor.numel():
        return EncodedTensor([Stream(RAW.kind, b"")], 1, None, 0, 0)
    tensor = tensor.detach().cpu()
    of_base = None if base is None else bit_patterns_of(base)
    if of_base is not None and np.array_equal(of_base, bit_patterns_of(tensor)):
        return EncodedTensor([Stream(UNCHANGED.kind, b"")], 1, None, 0, 0)
    integers = None if scale is None else find_integers(tensor, scale)
    best = _plan_elements(tensor, of_base) if integers is None else _plan_integers(integers, tensor)
    return EncodedTensor(best.plan.make(), best.width, integers, best.num_sparse_bytes, best.num_fixed_bytes)


def _plan_elements(tensor: Tensor, base: BitPatterns | None) -> _Candidate:
    num_columns = num_columns_of(tensor.shape)
    # Vectors are an addition to single elements: the sample that proposes them may be wrong.
    wider = [_plan_width(tensor, num_columns, width) for width in candidate_widths(tensor, num_columns)]
    candidates = [_plan_width(tensor, num_columns, 1, base), *wider]
    best = min(candidates, key=lambda candidate: candidate.plan.num_bytes)
    # The size without codebooks is that of single elements, also if vectors are packed in the end.
    return replace(best, num_sparse_bytes=candidates[0].num_sparse_bytes)


def _plan_width(tensor: Tensor, num_columns: int, width: int, base: BitPatterns | None = None) -> _Candidate:
    """Return the best plan with ``width`` elements per value."""
    elements = bit_patterns_of(tensor, width)
    nonzero = is_nonzero(elements)
    values = elements if nonzero.all() else elements[nonzero]
    shape = tuple(tensor.shape) if width == 1 else (len(elements) * width // num_columns, num_columns // width)
    found = NonzeroValues(elements, nonzero, values, shape, base)
    indexed = _index(found, CODEBOOKS) if len(values) else []
    plan, num_mask_bytes, num_fixed_bytes = _plan_values(found, indexed, [_plan_unindexed(values)])
    # If there are few zeros, their positions can take more than the zeros themselves.
    if len(values) < len(elements):
        plan = cheapest(plan, _plan_unindexed(elements))
    if base is not None:
        plan = cheapest(plan, plan_difference(elements, base))
    num_sparse_bytes = int(min(elements.nbytes, num_mask_bytes + values.nbytes))
    return _Candidate(plan, width, num_sparse_bytes, int(min(num_fixed_bytes, num_sparse_bytes)))


def _plan_integers(integers: IntegerTensor, tensor: Tensor) -> _Candidate:
    elements, element_size = integers.values, tensor.element_size()
    nonzero = elements != 0
    found = NonzeroIntegers(elements, nonzero, elements[nonzero], tuple(tensor.shape))
    plan, num_mask_bytes, num_fixed_bytes = _plan_values(found, _index(found, INTEGER_CODEBOOKS), [])
    num_sparse_bytes = int(min(element_size * len(elements), num_mask_bytes + element_size * len(found.values)))
    return _Candidate(plan, 1, num_sparse_bytes, int(min(num_fixed_bytes, num_sparse_bytes)))


def _index(values: NonzeroValues, encodings: Sequence[CodebookEncoding]) -> list[IndexedValues]:
    # In order: expensive searches stop early if an encoding before them did well.
    found: list[IndexedValues] = []
    for encoding in encodings:
        indexed = encoding.index(values, found)
        found += [] if indexed is None else [indexed]
    return found


def _plan_unindexed(values: BitPatterns) -> EncodingPlan:
    return cheapest(*(encoding.plan(values) for encoding in VALUES))


def _plan_values(
    values: NonzeroValues, indexed: Sequence[IndexedValues], unindexed: list[EncodingPlan]
) -> tuple[EncodingPlan, float, float]:
    """Return the best plan, the bytes of the mask, and those of mask and values, both without entropy coding."""
    plans = [each.plan() for each in indexed]
    num_fixed_bytes = min((plan.num_fixed_bytes for plan in plans), default=math.inf)
    predicted = [each.plan_in_context(values) for each in indexed]
    best = cheapest(*unindexed, *plans)
    if values.nonzero.all():
        return cheapest(best, *predicted), 0, num_fixed_bytes
    # Either positions and values apart, or zero as one more symbol of a codebook.
    positions = [encoding.plan(values.nonzero, values.shape) for encoding in POSITIONS]
    num_mask_bytes = min(plan.num_fixed_bytes for plan in positions if plan is not None)
    with_zeros = [each.plan_with_zeros(values.nonzero) for each in indexed]
    separate = EncodingPlan(_HEADER_BYTES, list) + cheapest(*positions) + best
    best = cheapest(*with_zeros, *predicted, separate)
    return best, num_mask_bytes, num_mask_bytes + num_fixed_bytes
