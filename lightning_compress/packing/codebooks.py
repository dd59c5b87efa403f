"""One codebook for all values of a tensor, as clustering leaves them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.encoding_types import ReadContext
from lightning_compress.packing.index_streams import SharedEntries
from lightning_compress.packing.indexed_values import CodebookEncoding, IndexedValues, NonzeroValues
from lightning_compress.packing.sorted_codebooks import plan_sorted_codebook
from lightning_compress.packing.streams import Stream, checked_int, checked_parameters
from lightning_compress.packing.uniform_codebooks import uniform_codebook


def with_codebook(entries: BitPatterns, indices: NDArray[Any]) -> IndexedValues:
    """Return values as indices into one codebook."""
    plain = Stream(CODEBOOK.kind, entries.tobytes(), (len(entries),))
    streams = [plain, *filter(None, [plan_sorted_codebook(entries)])]
    shortest, uniform = min(streams, key=lambda stream: len(stream.data)), uniform_codebook(entries)
    if uniform is not None:
        stream, table, places = uniform
        # A multiple that no weight has costs up to two bytes in the frequencies.
        if len(stream.data) + 2 * (len(table) - len(entries)) < len(shortest.data):
            indices = places.astype(np.min_scalar_type(len(table)))[indices]
            return IndexedValues(stream, table, indices, np.bincount(indices, minlength=len(table)))
    return IndexedValues(shortest, entries, indices, np.bincount(indices, minlength=len(entries)))


def _index(values: NonzeroValues, previous: Sequence[IndexedValues]) -> IndexedValues | None:
    found = values.unique()
    return None if found is None else with_codebook(*found)


def _read_entries(stream: Stream, context: ReadContext) -> SharedEntries:
    # The claimed number is compared with the bytes that there are before anything is allocated.
    (claimed,) = checked_parameters(1, stream.parameters)
    num_entries = checked_int(claimed, at_most=len(stream.data))
    if num_entries * context.like.nbytes != len(stream.data):
        raise ValueError(f"{len(stream.data)} bytes cannot hold a codebook of {num_entries} entries")
    # Entries of vectors have more than one dimension.
    table = np.frombuffer(stream.data, context.like.dtype).reshape(-1, *context.like.shape[1:])
    return SharedEntries(table)


CODEBOOK = CodebookEncoding(kind="codebook", label="codebook", index=_index, read_entries=_read_entries)
