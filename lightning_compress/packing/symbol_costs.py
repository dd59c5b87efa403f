"""Bits that integers would take in a packed file, by the model of its coder."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_compress.packing.context_coding import ContextModel, SignedSymbols, symbol_counts

MAX_INTEGER = 127
"""Largest integer, so that symbols are bytes."""


def integer_costs(integers: NDArray[Any], shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Return the context of each integer, and the bits of each possible integer in each context.

    Args:
        integers: Integers up to ``MAX_INTEGER`` in magnitude, in the order of memory.
        shape: Shape of the tensor.

    Returns:
        Contexts in the order of memory, and bits of shape ``(contexts, 2 * MAX_INTEGER + 1)``; the column of an
        integer is the integer plus ``MAX_INTEGER``.
    """
    meaning = SignedSymbols(2 * MAX_INTEGER + 1, MAX_INTEGER, with_zero=True)
    model = ContextModel.of_neighbors(shape, meaning.num_symbols)
    ordered = model.grid.from_flat((integers + MAX_INTEGER).astype(np.uint8))
    contexts, ranks = np.empty(ordered.shape, np.uint8), meaning.ranks()
    for part in model.grid.slices():
        place = part.position, part.rows, part.channels
        found, chosen = model.contexts.of(part), ordered[part.position, part.rows, part.channels]
        contexts[place] = found
        model.contexts.update(part, ranks[chosen])
    # The tables of the end instead of those of each slice: they are what the coder tends to.
    shape_of_tables = model.frequencies.tables().shape
    model.frequencies.update(symbol_counts(contexts.reshape(-1), ordered.reshape(-1), shape_of_tables))
    tables = model.frequencies.tables().astype(np.float64)
    return model.grid.to_flat(contexts), np.log2(tables.sum(axis=1, keepdims=True)) - np.log2(tables)
