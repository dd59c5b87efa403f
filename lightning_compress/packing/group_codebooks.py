"""One codebook per group of elements: per channel, per several channels, or per group of weights within a row."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns, Mask, num_columns_of
from lightning_compress.packing.group_entries import read_group_entries
from lightning_compress.packing.indexed_values import CodebookEncoding, IndexedValues, NonzeroValues
from lightning_compress.packing.streams import EncodingPlan, Stream

_FEW_ENTRIES = 64  # entries of a codebook for all values, up to which groups are not searched
_MIN_ELEMENTS = 64
_SAMPLE = 2**14
_WORTH_IT = 0.95  # of the size without groups, because the estimate is optimistic
_MAX_ENTRIES = 2**12  # entries in the codebook of one group
_MAX_COMPARED = 32  # entries up to which comparing elements with each of them is faster than a binary search


class GroupIndexedValues(IndexedValues):
    """Values as indices into the codebooks of their groups, whose entries have no common order."""

    def plan_with_zeros(self, nonzero: Mask) -> EncodingPlan | None:
        """Return ``None``: whether an index exists depends on the group, so positions must be known first."""
        return None

    def plan_in_context(self, values: NonzeroValues) -> EncodingPlan | None:
        """Return ``None``: the indices of different groups are ranks of frequency and cannot predict each other."""
        return None


def _index(values: NonzeroValues, previous: Sequence[IndexedValues]) -> IndexedValues | None:
    if any(len(indexed.counts) <= _FEW_ENTRIES for indexed in previous):
        return None
    elements, num_elements = values.elements, len(values.elements)
    if elements.itemsize not in (2, 4) or num_elements < _MIN_ELEMENTS:
        return None
    # Training does not record the size of groups, so all that are possible are tried on a sample.
    sizes = _group_sizes(num_elements, num_columns_of(values.shape))
    costs = {size: _bits_with_group_size(elements, size) for size in sizes}
    size = min(costs, key=lambda n: costs[n], default=0)
    num_bytes = min([values.values.nbytes, *(indexed.plan().num_bytes for indexed in previous)])
    if not size or costs[size] > _WORTH_IT * (8.0 * num_bytes / len(values.values)):
        return None
    return _index_groups(elements.reshape(-1, size), values.nonzero.reshape(-1, size))


def _group_sizes(num_elements: int, num_columns: int) -> Iterator[int]:
    """Yield sizes of groups within a row, then of groups of whole rows."""
    for power in range(4, 31):
        if 2**power < num_columns and num_columns % 2**power == 0:
            yield 2**power
    for power in range(31):
        size = num_columns * 2**power
        if 16 <= size <= num_elements // 2 and num_elements % size == 0:
            yield size


def _bits_with_group_size(elements: BitPatterns, size: int) -> float:
    """Estimate the bits per nonzero element, with one codebook per group, from a sample of the groups."""
    num_groups = len(elements) // size
    sample = elements.reshape(-1, size)[:: max(1, num_groups * size // _SAMPLE), :_SAMPLE]
    ordered = np.sort(sample, axis=1)
    # The smallest element of a group is an entry unless it is zero, and so is every element above its predecessor.
    num_entries = int((np.diff(ordered, axis=1) != 0).sum()) + int((ordered[:, 0] != 0).sum())
    num_nonzero = int(np.count_nonzero(sample))
    if not num_nonzero:
        return math.inf
    # An index costs the logarithm of the mean number of entries; the entries are stored once per group.
    return math.log2(1 + num_entries / len(sample)) + 8 * elements.itemsize * num_entries / num_nonzero


def _index_groups(elements: BitPatterns, nonzero: Mask) -> IndexedValues | None:
    """Return the values of groups, which are the rows of ``elements``."""
    ordered = np.sort(elements, axis=1)
    is_first = np.empty(ordered.shape, np.bool_)
    is_first[:, 0] = True
    np.not_equal(ordered[:, 1:], ordered[:, :-1], out=is_first[:, 1:])
    firsts = np.flatnonzero(is_first)
    # Runs end at the end of a row, because the first element of each row begins one.
    counts, table = np.diff(firsts, append=ordered.size), ordered.reshape(-1)[firsts]
    kept = table != 0
    group, counts, table = firsts[kept] // elements.shape[1], counts[kept], table[kept]
    sizes = np.bincount(group, minlength=len(elements))
    if sizes.max() > _MAX_ENTRIES:
        return None
    # Most frequent first: the indices of all groups share one table of frequencies.
    codebooks = table[np.lexsort((-counts, group))]
    indices = _ranks(elements, codebooks, sizes)[nonzero]
    data = sizes.astype("<u2").tobytes() + codebooks.tobytes()
    stream = Stream(GROUP_CODEBOOKS.kind, data, (elements.shape[1],))
    return GroupIndexedValues(stream, codebooks, indices, np.bincount(indices))


def _ranks(elements: BitPatterns, codebooks: BitPatterns, sizes: NDArray[np.int64]) -> NDArray[Any]:
    """Return the index of each element in the codebook of its group, and an arbitrary index for zeros."""
    max_size = int(sizes.max())
    ranks = np.zeros(elements.shape, np.min_scalar_type(max_size))
    if max_size <= _MAX_COMPARED:
        # Codebooks padded to one size, so that one comparison covers the k-th entries of all groups.
        columns = np.arange(len(codebooks)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        padded = np.zeros((len(elements), max_size), elements.dtype)
        padded[np.repeat(np.arange(len(elements)), sizes), columns] = codebooks
        for k in range(1, max_size):
            # In place and in bytes: several times as fast as assignment under a mask.
            found = (elements == padded[:, k : k + 1]).view(np.uint8)
            found *= np.uint8(k)
            ranks += found
        return ranks
    for row, rank, codebook in zip(elements, ranks, np.split(codebooks, np.cumsum(sizes)[:-1]), strict=True):
        order = np.argsort(codebook)
        rank[:] = order[np.minimum(np.searchsorted(codebook[order], row), len(order) - 1)] if len(order) else 0
    return ranks


GROUP_CODEBOOKS = CodebookEncoding(
    kind="blocks", label="codebook per group", index=_index, read_entries=read_group_entries
)
