"""The values that are not zero: as they are, or as indices into a codebook of all, or one of each block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import Words, keys_of
from lightning_compress.packing.bits import num_packed_bytes, plan_symbols, read_symbols
from lightning_compress.packing.streams import EncodingPlan, Stream, exactly, whole
from lightning_compress.packing.unique import find_values


@dataclass(frozen=True)
class Indexed:
    """Values as indices into a table.

    Attributes:
        table: The stream that holds the table.
        indices: One for each value.
        counts: How often each index occurs.
        is_shared: Whether all values have the same table, so that zero may be one more entry.
    """

    table: Stream
    indices: NDArray[Any]
    counts: NDArray[Any]
    is_shared: bool = True

    @property
    def num_plain_bytes(self) -> int:
        """Bytes of table and indices of a fixed width."""
        return len(self.table.data) + num_packed_bytes(len(self.indices), len(self.counts))

    def plan(self) -> EncodingPlan:
        """Table and indices."""
        return self._table() + plan_symbols("indices", lambda: self.indices, self.counts)

    def plan_with_zeros(self, nonzero: NDArray[np.bool_]) -> EncodingPlan | None:
        """The same, with zeros among the values as index 0; ``None`` where that cannot be."""
        if not self.is_shared:
            return None
        counts = np.append(len(nonzero) - len(self.indices), self.counts)
        return self._table() + plan_symbols("symbols", lambda: self._among(nonzero), counts)

    def _table(self) -> EncodingPlan:
        return EncodingPlan(len(self.table.data), lambda: [self.table])

    def _among(self, nonzero: NDArray[np.bool_]) -> NDArray[Any]:
        symbols = np.zeros(len(nonzero), np.min_scalar_type(len(self.counts)))
        symbols[nonzero] = self.indices.astype(symbols.dtype) + symbols.dtype.type(1)
        return symbols


def plan_raw(values: Words) -> EncodingPlan:
    """Values as they are."""
    return EncodingPlan(values.nbytes, lambda: [Stream("raw", values.tobytes())])


def index_values(values: Words) -> Indexed | None:
    """Values and one codebook, if they are few."""
    found = find_values(keys_of(values), most=max(len(values) // 2, 1))
    if found is None:
        return None
    keys, indices = found
    codebook = keys.astype(keys.dtype.newbyteorder("<"))
    if values.ndim > 1:
        last = np.empty(len(keys), np.int64)
        last[indices] = np.arange(len(indices))
        codebook = values[last]
        if not np.array_equal(codebook[indices], values):
            return None  # two patterns have one hash
    counts = np.bincount(indices, minlength=len(keys))
    return Indexed(Stream("codebook", codebook.tobytes(), (len(keys),)), indices, counts)


def index_integers(values: NDArray[np.int16]) -> Indexed:
    """Whole numbers in a narrow range as indices from the lowest on."""
    low = int(values.min(initial=0))
    indices = (values - np.int16(low)).astype(np.min_scalar_type(int(values.max(initial=0)) - low))
    counts = np.bincount(indices, minlength=1)
    return Indexed(Stream("range", b"", (low, len(counts))), indices, counts)


def read_table(kind: str, data: bytes, parameters: tuple[object, ...], like: Words) -> Words:
    """The table of a stream, of the type and width of ``like``.

    Raises:
        ValueError: If it is damaged.
    """
    if kind == "range":
        low, num_values = exactly(2, parameters)
        first = whole(low, at_least=-(2**15), at_most=2**15)
        return np.arange(first, first + whole(num_values, at_least=1, at_most=2**16)).astype(like.dtype)
    (num_values,) = exactly(1, parameters)
    entry = like.nbytes // len(like)
    if whole(num_values, at_most=len(data) // entry) * entry != len(data):
        raise ValueError(f"{len(data)} bytes are no codebook of {num_values} entries")
    return np.frombuffer(data, like.dtype).reshape(-1, *like.shape[1:])


def read_indexed(data: bytes, coding: object, table: Words, num_values: int) -> Words:
    """Values by their indices into a table.

    Raises:
        ValueError: If the indices are damaged, or there are none to take.
    """
    if num_values and not len(table):
        raise ValueError("the codebook is empty")
    return table[read_symbols(data, coding, num_symbols=num_values, num_values=len(table))]
