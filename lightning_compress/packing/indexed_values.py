"""Values as indices into a codebook, and descriptions of the encodings that find one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.bit_patterns import BitPatterns, Mask
from lightning_compress.packing.context_coding import MAX_SYMBOLS
from lightning_compress.packing.encoding_types import ReadContext
from lightning_compress.packing.fixed_width import num_packed_bytes
from lightning_compress.packing.index_streams import INDICES, NEIGHBORS, REBASED, SYMBOLS, CodebookEntries, read_indexed
from lightning_compress.packing.ordered_entries import OrderedEntries
from lightning_compress.packing.streams import EncodingPlan, Stream, cheapest, next_stream
from lightning_compress.packing.unique import sorted_unique, strided_sample, unique_patterns

_MIN_PREDICTED = 64  # elements, below which there is nothing to learn
_MAX_INTEGERS = 64  # distinct integers in a sample, above which a range is shorter than a codebook


@dataclass(frozen=True)
class NonzeroValues:
    """Nonzero elements of a tensor, for which a codebook is searched.

    Attributes:
        elements: All elements, flat, including zeros.
        nonzero: Flat mask of the nonzero elements.
        values: Nonzero elements.
        shape: Shape of the tensor, with vectors of several elements as one.
        base: All elements of the tensor in the base, if there is one with this dtype and shape.
    """

    elements: BitPatterns
    nonzero: Mask
    values: BitPatterns
    shape: tuple[int, ...]
    base: BitPatterns | None = None

    def unique(self) -> tuple[BitPatterns, NDArray[Any]] | None:
        """Return the distinct values and the index of each value, or ``None`` if there are too many."""
        return unique_patterns(self.values)


class NonzeroIntegers(NonzeroValues):
    """Nonzero integers of a quantized tensor."""

    def unique(self) -> tuple[BitPatterns, NDArray[Any]] | None:
        """Return the distinct integers as bit patterns, or ``None`` if a sample has more than a few."""
        # A wide range has few unused integers, so a stored codebook would only add bytes to it.
        if len(sorted_unique(strided_sample(self.values))) > _MAX_INTEGERS:
            return None
        return unique_patterns(self.values.view("<u2"))


@dataclass(frozen=True)
class IndexedValues:
    """Values as indices into one codebook.

    Attributes:
        codebook: Stream of the codebook.
        entries: Entries of the codebook.
        indices: Index of each value.
        counts: Number of occurrences of each index.
    """

    codebook: Stream
    entries: BitPatterns
    indices: NDArray[Any]
    counts: NDArray[Any]

    def plan(self) -> EncodingPlan:
        """Return the plan of codebook and indices."""
        num_fixed_bytes = num_packed_bytes(len(self.indices), len(self.counts))
        coded = INDICES.plan(lambda: self.indices, self.counts)
        return self._plan_codebook() + replace(coded, num_fixed_bytes=num_fixed_bytes)

    def plan_with_zeros(self, nonzero: Mask) -> EncodingPlan | None:
        """Return the plan of all elements with zero as symbol 0, or ``None`` if that is not possible.

        Entropy coding of zeros among the values is shorter than separate positions if zeros are spread at random.
        """
        # Symbol 0 is zero, so the index k of a value becomes the symbol k + 1.
        counts = np.append(len(nonzero) - len(self.indices), self.counts)
        return self._plan_codebook() + SYMBOLS.plan(lambda: self._symbols(nonzero), counts)

    def plan_in_context(self, values: NonzeroValues) -> EncodingPlan | None:
        """Return the plan of all elements with frequencies by context, or ``None`` if that is not possible."""
        nonzero = values.nonzero
        if self.entries.ndim > 1 or len(nonzero) < _MIN_PREDICTED or len(self.entries) >= MAX_SYMBOLS:
            return None
        ordered = OrderedEntries.of(self.entries, with_zero=len(self.indices) < len(nonzero))
        symbols = np.full(len(nonzero), ordered.zero, np.min_scalar_type(len(ordered.table)))
        symbols[nonzero] = ordered.symbols.astype(symbols.dtype)[self.indices]
        context = ReadContext(self.entries[:0], len(nonzero), None, values.shape, values.base)
        plans = [encoding.plan(symbols, ordered, context) for encoding in (NEIGHBORS, REBASED)]
        return self._plan_codebook() + cheapest(*plans)

    def _plan_codebook(self) -> EncodingPlan:
        num_bytes = len(self.codebook.data)
        return EncodingPlan(num_bytes, lambda: [self.codebook], num_fixed_bytes=num_bytes)

    def _symbols(self, nonzero: Mask) -> NDArray[Any]:
        symbols = np.zeros(len(nonzero), np.min_scalar_type(len(self.counts)))
        symbols[nonzero] = self.indices.astype(symbols.dtype) + symbols.dtype.type(1)
        return symbols


@dataclass(frozen=True)
class CodebookEncoding:
    """Encoding of values by a stream of one or several codebooks, followed by a stream of indices.

    Attributes:
        kind: Name in files; must never change.
        label: Name in the report.
        index: Takes nonzero values and the results of the encodings listed before this one, which tell if a longer
            search can pay off. Returns ``None`` if the encoding does not apply.
        read_entries: Takes the stream of this kind and a context. Raises ``ValueError`` if the stream is damaged.
    """

    kind: str
    label: str
    index: Callable[[NonzeroValues, Sequence[IndexedValues]], IndexedValues | None]
    read_entries: Callable[[Stream, ReadContext], CodebookEntries]

    def read(self, stream: Stream, streams: Iterator[Stream], context: ReadContext) -> BitPatterns:
        """Return the values of this stream and the stream of indices after it.

        Raises:
            ValueError: If a stream is missing or damaged.
        """
        entries = self.read_entries(stream, context)
        return read_indexed(next_stream(streams), entries, context)
