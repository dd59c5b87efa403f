"""Entropy coding of the symbols of a tensor by adaptive frequencies in contexts of neighbors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing import ans_stack
from lightning_compress.packing.adaptive_frequencies import AdaptiveFrequencies
from lightning_compress.packing.neighbor_contexts import NeighborContexts
from lightning_compress.packing.weight_grids import GridSlice, WeightGrid

MAX_SYMBOLS = 512
"""Symbols up to which a table of frequencies per context pays off."""


class Contexts(Protocol):
    """Contexts of the elements of a slice, of which encoder and decoder know the same."""

    def of(self, part: GridSlice) -> NDArray[Any]:
        """Return the contexts of a slice, of shape ``(rows, channels)``."""

    def update(self, part: GridSlice, values: NDArray[np.int16]) -> None:
        """Take note of the values of a slice: signed ranks, 0 for zero."""


class Frequencies(Protocol):
    """Frequencies of the symbols in each context."""

    def tables(self) -> NDArray[np.int64]:
        """Return integer frequencies of shape ``(contexts, num_symbols)``, all at least 1."""

    def update(self, counts: NDArray[np.int64]) -> None:
        """Add counts of shape ``(contexts, num_symbols)``."""


@dataclass(frozen=True)
class ContextModel:
    """Probabilities of symbols by their contexts, learned while they are coded.

    Attributes:
        grid: Order of coding.
        contexts: Contexts of the elements.
        frequencies: Frequencies of the symbols in each context.
    """

    grid: WeightGrid
    contexts: Contexts
    frequencies: Frequencies

    @staticmethod
    def of_neighbors(shape: tuple[int, ...], num_symbols: int) -> ContextModel:
        """Return the model in which each weight is predicted by those around it."""
        grid = WeightGrid.of(shape)
        return ContextModel(grid, NeighborContexts(grid), AdaptiveFrequencies(num_symbols))


@dataclass(frozen=True)
class SignedSymbols:
    """Meaning of symbols in ascending order of their values.

    Attributes:
        num_symbols: Number of symbols.
        num_negative: Number of symbols of negative values, which come first.
        with_zero: True if the symbol after those is zero.
    """

    num_symbols: int
    num_negative: int
    with_zero: bool

    def ranks(self) -> NDArray[np.int16]:
        """Return the signed rank of each symbol, from the value closest to zero outwards.

        >>> SignedSymbols(4, 2, with_zero=False).ranks().tolist()
        [-2, -1, 1, 2]
        """
        ranks = np.arange(self.num_symbols) - self.num_negative
        return (ranks if self.with_zero else ranks + (ranks >= 0)).astype(np.int16)


@dataclass(frozen=True)
class _CodedSlice:
    """Symbols of a slice with their contexts; ``tables[c]`` are the frequencies in context ``c``."""

    symbols: NDArray[Any]
    contexts: NDArray[Any]
    tables: NDArray[np.int32]


@dataclass(frozen=True)
class ContextCode:
    """Symbols of a tensor, modeled and not yet coded.

    Attributes:
        num_bytes: Size in bytes, exact to within a few bytes.
    """

    num_bytes: float
    _slices: list[_CodedSlice]

    def encode(self) -> bytes:
        """Return the bytes that :func:`decode` reads."""
        stack = ans_stack.AnsCoder()
        # Last in, first out: slices and contexts are pushed in the reverse of the order of decoding.
        for coded in reversed(self._slices):
            symbols = coded.symbols[np.argsort(coded.contexts, kind="stable")]
            for context, start, stop in reversed(_runs(coded.contexts, len(coded.tables))):
                ans_stack.push(stack, symbols[start:stop], _model(coded.tables[context]))
        return ans_stack.bytes_of(stack)


def model_symbols(symbols: NDArray[Any], model: ContextModel, meaning: SignedSymbols) -> ContextCode:
    """Model the symbols of a tensor.

    Args:
        symbols: Symbols in the order of memory.
        model: Model, of which nothing has been coded.
        meaning: Meaning of the symbols.
    """
    grid, contexts, frequencies, ranks = model.grid, model.contexts, model.frequencies, meaning.ranks()
    ordered, slices, bits = grid.from_flat(symbols), [], 0.0
    for part in grid.slices():
        chosen = ordered[part.position, part.rows, part.channels]
        found, tables = contexts.of(part).reshape(-1), frequencies.tables()
        counts = symbol_counts(found, chosen.reshape(-1), tables.shape)
        bits += float((counts.sum(axis=1) * np.log2(tables.sum(axis=1))).sum() - (counts * np.log2(tables)).sum())
        # Bytes and 32 bits, because the slices of a tensor wait until its encoding is chosen.
        slices.append(_CodedSlice(chosen.reshape(-1), found, tables.astype(np.int32)))
        frequencies.update(counts)
        contexts.update(part, ranks[chosen])
    return ContextCode(bits / 8 + 4, slices)


def decode(data: bytes, model: ContextModel, meaning: SignedSymbols) -> NDArray[Any]:
    """Return the symbols in the order of memory.

    Raises:
        ValueError: If the bytes are damaged.
    """
    grid, contexts, frequencies, ranks = model.grid, model.contexts, model.frequencies, meaning.ranks()
    stack, dtype = ans_stack.stack_of(data), np.min_scalar_type(meaning.num_symbols - 1)
    ordered = np.empty((grid.num_positions, grid.num_rows, grid.num_channels), dtype)
    for part in grid.slices():
        found, tables = contexts.of(part), frequencies.tables()
        symbols = _pop_slice(stack, found.reshape(-1), tables, dtype)
        frequencies.update(symbol_counts(found.reshape(-1), symbols, tables.shape))
        chosen = symbols.reshape(found.shape)
        ordered[part.position, part.rows, part.channels] = chosen
        contexts.update(part, ranks[chosen])
    ans_stack.check_empty(stack)
    return grid.to_flat(ordered)


def _pop_slice(stack: Any, found: NDArray[np.uint8], tables: NDArray[np.int64], dtype: Any) -> NDArray[Any]:
    in_order = np.empty(len(found), dtype)
    for context, start, stop in _runs(found, len(tables)):
        in_order[start:stop] = ans_stack.pop(stack, stop - start, _model(tables[context]), dtype)
    symbols = np.empty(len(found), dtype)
    # Stable: encoder and decoder must agree on the order of the elements of a context.
    symbols[np.argsort(found, kind="stable")] = in_order
    return symbols


def symbol_counts(contexts: NDArray[Any], symbols: NDArray[Any], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Return how often each symbol occurs in each context, of shape ``(contexts, num_symbols)``."""
    joint = contexts * np.int32(shape[1])
    joint += symbols
    return np.bincount(joint, minlength=shape[0] * shape[1]).reshape(shape)


def _runs(contexts: NDArray[Any], num_contexts: int) -> list[tuple[int, int, int]]:
    """Return each context in use, with the start and the end of its symbols among those sorted by context."""
    ends = np.cumsum(np.bincount(contexts, minlength=num_contexts))
    starts = np.append(0, ends[:-1])
    used = np.flatnonzero(ends > starts)
    return list(zip(used.tolist(), starts[used].tolist(), ends[used].tolist(), strict=True))


def _model(frequencies: NDArray[Any]) -> Any:
    return ans_stack.Categorical(frequencies.astype(np.float64), perfect=False)
