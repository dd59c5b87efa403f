"""The cheapest way to pack one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.packing.bit_patterns import bit_patterns_of, is_nonzero, keys_of
from lightning_compress.packing.codebooks import Indexed, index_integers, index_values
from lightning_compress.packing.positions import plan_positions
from lightning_compress.packing.quantized_tensors import IntegerTensor, find_integers
from lightning_compress.packing.streams import EncodingPlan, Stream, cheapest
from lightning_compress.packing.unique import distinct, sample_of
from lightning_compress.packing.values import index_all, plan_plain

_WIDTHS = (2, 4)
_OFTEN = 4  # times that a vector is found in a sample, before it is looked for everywhere
_WORTH_IT = 0.93
_FEW = 64  # whole numbers that are listed rather than counted from the lowest on


@dataclass(frozen=True)
class Encoded:
    """A packed tensor.

    Attributes:
        streams: What it is made of.
        width: Elements in each entry of a codebook.
        integers: The whole numbers that it is, if it is.
        num_sparse_bytes: What it takes with zeros left out, and nothing else done.
        num_fixed_bytes: What it takes with a codebook as well, all in fixed numbers of bits.
    """

    streams: list[Stream]
    width: int
    integers: IntegerTensor | None
    num_sparse_bytes: int
    num_fixed_bytes: int


@dataclass(frozen=True)
class _Way:
    plan: EncodingPlan
    width: int
    num_sparse_bytes: int
    num_fixed_bytes: int


def encode(tensor: Tensor, scale: Tensor | None = None) -> Encoded:
    """Packs a tensor such that every bit comes back.

    Args:
        tensor: On any device, of any type and shape; it stays as it is.
        scale: The scale of its quantizer, if it has one.
    """
    if not tensor.numel():
        return Encoded([Stream("raw", b"")], 1, None, 0, 0)
    tensor = tensor.detach().cpu()
    num_columns = columns_of(tensor.shape)
    integers = None if scale is None else find_integers(tensor, scale)
    if integers is not None:
        way = _integer_way(integers.values, num_columns, tensor.element_size())
    else:
        ways = [_way(tensor, num_columns, width) for width in (1, *_vector_widths(tensor, num_columns))]
        way = min(ways, key=lambda way: way.plan.num_bytes)
        way = replace(way, num_sparse_bytes=ways[0].num_sparse_bytes)
    return Encoded(way.plan.make(), way.width, integers, way.num_sparse_bytes, way.num_fixed_bytes)


def _way(tensor: Tensor, num_columns: int, width: int) -> _Way:
    words = bit_patterns_of(tensor, width)
    nonzero, columns = is_nonzero(words), num_columns // width
    values = words if nonzero.all() else words[nonzero]
    indexed = index_all(words, nonzero, values, columns) if len(values) else []
    plan, masks, fixed = _with_positions(nonzero, columns, indexed, plan_plain(values))
    if len(values) < len(words):
        plan = cheapest(plan, plan_plain(words))
    sparse = min(words.nbytes, masks + values.nbytes)
    return _Way(plan, width, sparse, min(fixed, sparse))


def _integer_way(numbers: NDArray[np.int16], num_columns: int, element_size: int) -> _Way:
    nonzero = numbers != 0
    values = numbers[nonzero]
    indexed = [index_integers(values)]
    if len(values) and len(distinct(sample_of(values))) <= _FEW:
        indexed += filter(None, [index_values(values.view("<u2"))])
    plan, masks, fixed = _with_positions(nonzero, num_columns, indexed, None)
    sparse = min(element_size * len(numbers), masks + element_size * len(values))
    return _Way(plan, 1, sparse, min(fixed, sparse))


def _with_positions(
    nonzero: NDArray[np.bool_], num_columns: int, indexed: list[Indexed], plain: EncodingPlan | None
) -> tuple[EncodingPlan, int, int]:
    """The best plan for values in their places; bytes of masks, and with the best codebook, without entropy coding."""
    plans = ([] if plain is None else [plain]) + [i.plan() for i in indexed]
    fixed = min((i.num_plain_bytes for i in indexed), default=2**62)
    if nonzero.all():
        return cheapest(*plans), 0, fixed
    positions, masks = plan_positions(nonzero, num_columns)
    together = [i.plan_with_zeros(nonzero) for i in indexed]
    return cheapest(*together, positions + cheapest(*plans)), masks, masks + fixed


def _vector_widths(tensor: Tensor, num_columns: int) -> list[int]:
    """The width of vectors of which there seem to be fewest, by a sample, if they are few."""
    if tensor.ndim < 2:
        return []
    possible = [w for w in _WIDTHS if num_columns % w == 0 and w * tensor.element_size() <= 16]
    single = _sample_bits(tensor, 1) if possible else 0.0
    costs = {width: _sample_bits(tensor, width) for width in possible}
    return [width for width in possible if costs[width] == min(costs.values()) < _WORTH_IT * single]


def _sample_bits(tensor: Tensor, width: int) -> float:
    """Entropy of an element in bits, by a sample of vectors; that of all its bits if nearly none comes twice."""
    sample = keys_of(sample_of(bit_patterns_of(tensor, width)))
    ordered = np.sort(sample)
    values = distinct(sample)
    if len(values) * _OFTEN > np.count_nonzero(sample) + _OFTEN:
        return 8.0 * tensor.element_size()
    counts = np.diff(np.searchsorted(ordered, values), append=len(ordered))
    return float((counts * np.log2(len(ordered) / counts)).sum()) / len(ordered) / width


def columns_of(shape: tuple[int, ...]) -> int:
    """Elements in a row of the first dimension; one row has all of a tensor that has no second."""
    return math.prod(shape[1:] if len(shape) > 1 else shape)
