"""Integers of a quantized tensor as offsets from the smallest one, which need no stored codebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lightning_compress.packing.encoding_types import ReadContext
from lightning_compress.packing.index_streams import SharedEntries
from lightning_compress.packing.indexed_values import CodebookEncoding, IndexedValues, NonzeroValues
from lightning_compress.packing.streams import Stream, checked_int, checked_parameters


def _index(values: NonzeroValues, previous: Sequence[IndexedValues]) -> IndexedValues:
    integers = values.values
    smallest, largest = int(integers.min(initial=0)), int(integers.max(initial=0))
    # At most 2**11 integers lie in the range, so the difference cannot overflow 16 bits.
    indices = (integers - np.int16(smallest)).astype(np.min_scalar_type(largest - smallest))
    counts = np.bincount(indices, minlength=1)
    entries = np.arange(smallest, smallest + len(counts)).astype(integers.dtype)
    return IndexedValues(Stream(INTEGER_RANGE.kind, b"", (smallest, len(counts))), entries, indices, counts)


def _read_entries(stream: Stream, context: ReadContext) -> SharedEntries:
    smallest, num_values = checked_parameters(2, stream.parameters)
    first = checked_int(smallest, at_least=-(2**15), at_most=2**15 - 1)
    stop = first + checked_int(num_values, at_least=1, at_most=2**15 - first)
    return SharedEntries(np.arange(first, stop).astype(context.like.dtype))


INTEGER_RANGE = CodebookEncoding(kind="range", label="", index=_index, read_entries=_read_entries)
