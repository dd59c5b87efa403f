"""Streams of indices into a codebook, with or without one more symbol for zero."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.base_contexts import BaseContexts, BaseFrequencies, clusters_of
from lightning_compress.packing.bit_patterns import BitPatterns
from lightning_compress.packing.context_coding import MAX_SYMBOLS, ContextModel, decode, model_symbols
from lightning_compress.packing.encoding_types import ReadContext
from lightning_compress.packing.ordered_entries import OrderedEntries
from lightning_compress.packing.streams import EncodingPlan, Stream, checked_int, checked_parameters
from lightning_compress.packing.symbol_coders import plan_symbols, read_symbols
from lightning_compress.packing.weight_grids import WeightGrid


class CodebookEntries(Protocol):
    """Entries of one or several codebooks that have been read."""

    @property
    def num_values(self) -> int:
        """Number of entries, of the largest codebook if there are several."""

    def look_up(self, indices: NDArray[Any]) -> BitPatterns:
        """Return the entry of each value.

        Raises:
            ValueError: If an index is beyond the codebook of its value.
        """

    def with_zero(self) -> CodebookEntries:
        """Return the entries with zero prepended.

        Raises:
            ValueError: If the values do not all have the same codebook.
        """

    def in_order(self, *, with_zero: bool) -> OrderedEntries:
        """Return the entries in ascending order, and zero if ``with_zero``.

        Raises:
            ValueError: If the values do not all have the same codebook.
        """


@dataclass(frozen=True)
class IndexEncoding:
    """Encoding of indices.

    Attributes:
        kind: Name in files; must never change.
        label: Name in the report.
        select_entries: Takes the entries of the codebook and a context, and returns the entries that the symbols
            index. Raises ``ValueError`` if the encoding is not allowed in the context.
    """

    kind: str
    label: str
    select_entries: Callable[[CodebookEntries, ReadContext], CodebookEntries]

    def plan(self, symbols: Callable[[], NDArray[Any]], counts: NDArray[Any]) -> EncodingPlan:
        """Return the plan of the symbols, the k-th of which occurs ``counts[k]`` times."""
        return plan_symbols(self.kind, symbols, counts)

    def read(self, stream: Stream, codebook: CodebookEntries, context: ReadContext) -> BitPatterns:
        """Return the values that the symbols of a stream index.

        Raises:
            ValueError: If the stream is damaged or the codebook is empty.
        """
        (coder,) = checked_parameters(1, stream.parameters)
        # Entries first: their number bounds the symbols.
        entries = self.select_entries(codebook, context)
        if context.count and not entries.num_values:
            raise ValueError("the codebook is empty")
        symbols = read_symbols(stream.data, coder, num_symbols=context.count, num_values=entries.num_values)
        return entries.look_up(symbols)


@dataclass(frozen=True)
class ContextEncoding:
    """Encoding of indices, or of indices and zeros, with frequencies that depend on the context of each.

    Attributes:
        kind: Name in files; must never change.
        label: Name in the report.
        model: Takes a context and the number of symbols; returns ``None`` if the context does not have the model.
    """

    kind: str
    label: str
    model: Callable[[ReadContext, int], ContextModel | None]

    def plan(self, symbols: NDArray[Any], ordered: OrderedEntries, context: ReadContext) -> EncodingPlan | None:
        """Return the plan of the symbols of all elements, or ``None`` if the encoding does not apply."""
        model = self.model(context, ordered.meaning.num_symbols)
        if model is None:
            return None
        code = model_symbols(symbols, model, ordered.meaning)
        return EncodingPlan(code.num_bytes, lambda: [Stream(self.kind, code.encode(), (int(ordered.zero_added),))])

    def read(self, stream: Stream, codebook: CodebookEntries, context: ReadContext) -> BitPatterns:
        """Return the elements that the symbols of a stream index.

        Raises:
            ValueError: If the stream is damaged, or does not hold all elements of the tensor.
        """
        (claimed,) = checked_parameters(1, stream.parameters)
        if context.nonzero is not None or context.like.ndim > 1:
            raise ValueError("indices with contexts must be those of all elements")
        ordered = codebook.in_order(with_zero=bool(checked_int(claimed, at_most=1)))
        checked_int(len(ordered.table), at_least=1, at_most=MAX_SYMBOLS)
        model = self.model(context, ordered.meaning.num_symbols)
        if model is None:
            raise ValueError("it refers to a tensor that the base does not have")
        return ordered.table[decode(stream.data, model, ordered.meaning)]


def _model_of_neighbors(context: ReadContext, num_symbols: int) -> ContextModel:
    return ContextModel.of_neighbors(context.shape, num_symbols)


def _model_of_base(context: ReadContext, num_symbols: int) -> ContextModel | None:
    found = None if context.base is None else clusters_of(context.base)
    if found is None or len(found[0]) != context.count:
        return None
    grid = WeightGrid.of(context.shape)
    return ContextModel(grid, BaseContexts(found[0], grid), BaseFrequencies(found[1], num_symbols))


def _with_zero(codebook: CodebookEntries, context: ReadContext) -> CodebookEntries:
    # Zeros have a symbol instead of a position, so a tensor cannot have both.
    if context.nonzero is not None:
        raise ValueError("symbols that include zero must not follow a stream of positions")
    return codebook.with_zero()


INDICES = IndexEncoding(kind="indices", label="", select_entries=lambda codebook, context: codebook)
SYMBOLS = IndexEncoding(kind="symbols", label="zero as a codebook entry", select_entries=_with_zero)

NEIGHBORS = ContextEncoding(kind="neighbors", label="coded by neighbors", model=_model_of_neighbors)
REBASED = ContextEncoding(kind="rebased", label="coded by the base", model=_model_of_base)

INDEX_ENCODINGS = (INDICES, SYMBOLS, NEIGHBORS, REBASED)

_BY_KIND = {encoding.kind: encoding for encoding in INDEX_ENCODINGS}


def read_indexed(stream: Stream, codebook: CodebookEntries, context: ReadContext) -> BitPatterns:
    """Return the values of a stream of any kind of indices.

    Raises:
        ValueError: If the stream is damaged or of another kind.
    """
    if stream.kind not in _BY_KIND:
        raise ValueError(f"indices must follow a codebook, but {stream.kind[:40]!r} does")
    return _BY_KIND[stream.kind].read(stream, codebook, context)


@dataclass(frozen=True)
class SharedEntries:
    """Entries of one codebook for all values."""

    table: BitPatterns

    @property
    def num_values(self) -> int:
        """Number of entries."""
        return len(self.table)

    def look_up(self, indices: NDArray[Any]) -> BitPatterns:
        """Return the entry of each value; the coder has checked that there are no larger indices."""
        return self.table[indices]

    def with_zero(self) -> SharedEntries:
        """Return the entries with zero prepended."""
        zero = np.zeros((1, *self.table.shape[1:]), self.table.dtype)
        return SharedEntries(np.concatenate([zero, self.table]))

    def in_order(self, *, with_zero: bool) -> OrderedEntries:
        """Return the entries in ascending order, and zero if ``with_zero``."""
        return OrderedEntries.of(self.table, with_zero=with_zero)
