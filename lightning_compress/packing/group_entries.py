"""Reading of one codebook per group of elements."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.encoding_types import ReadContext
from lightning_compress.packing.ordered_entries import OrderedEntries
from lightning_compress.packing.streams import Stream, checked_int, checked_parameters

_CHUNK = 2**18  # values that are looked up at a time, which bounds memory


@dataclass(frozen=True)
class GroupEntries:
    """Entries of the codebooks of all groups, one codebook after another.

    Attributes:
        table: Entries.
        starts: First entry of the codebook of each value.
        sizes: Number of entries of the codebook of each value.
    """

    table: BitPatterns
    starts: NDArray[Any]
    sizes: NDArray[Any]

    @property
    def num_values(self) -> int:
        """Number of entries of the largest codebook."""
        return int(self.sizes.max(initial=0))

    def look_up(self, indices: NDArray[Any]) -> BitPatterns:
        """Return the entry of each value.

        Raises:
            ValueError: If an index is beyond the codebook of its group, which may be smaller than the largest one.
        """
        values = np.empty(len(indices), self.table.dtype)
        for start in range(0, len(indices), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            if (indices[chunk] >= self.sizes[chunk]).any():
                raise ValueError("an index is beyond the codebook of its group")
            values[chunk] = self.table[np.add(self.starts[chunk], indices[chunk], dtype=np.int64)]
        return values

    def with_zero(self) -> GroupEntries:
        """Raise a ``ValueError``."""
        raise ValueError("codebooks of groups cannot have an entry for zero")

    def in_order(self, *, with_zero: bool) -> OrderedEntries:
        """Raise a ``ValueError``."""
        raise ValueError("codebooks of groups have no common order")


def read_group_entries(stream: Stream, context: ReadContext) -> GroupEntries:
    """Return the entries of a stream, and the codebook of each value.

    Raises:
        ValueError: If the stream is damaged.
    """
    # Without positions every element has a value; a broadcast mask takes no memory.
    nonzero = np.broadcast_to(np.True_, context.count) if context.nonzero is None else context.nonzero
    (claimed,) = checked_parameters(1, stream.parameters)
    group_size = checked_int(claimed, at_least=1, at_most=len(nonzero))
    if len(nonzero) % group_size:
        raise ValueError(f"{len(nonzero)} elements cannot be divided into groups of {group_size}")
    num_values = nonzero.reshape(-1, group_size).sum(axis=1)
    table, sizes = _split_codebooks(stream.data, len(num_values), context.like)
    # In the narrowest types, since there is one number for each value.
    starts = (np.cumsum(sizes) - sizes).astype(np.min_scalar_type(len(table)))
    return GroupEntries(table, np.repeat(starts, num_values), np.repeat(sizes.astype("<u2"), num_values))


def _split_codebooks(data: bytes, num_groups: int, like: BitPatterns) -> tuple[BitPatterns, NDArray[np.int64]]:
    num_table_bytes = len(data) - 2 * num_groups
    if num_table_bytes < 0 or num_table_bytes % like.itemsize:
        raise ValueError(f"{len(data)} bytes cannot hold the codebooks of {num_groups} groups")
    sizes = np.frombuffer(data, "<u2", num_groups).astype(np.int64)
    table = np.frombuffer(data, like.dtype, offset=2 * num_groups)
    if sizes.sum() != len(table):
        raise ValueError(f"the codebooks must have {sizes.sum()} entries in total, but have {len(table)}")
    return table, sizes
