"""Bits of integers by the contexts of their neighbors."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_compress.packing.context_coding import ContextModel, SignedSymbols, model_symbols
from lightning_compress.packing.neighbor_contexts import NUM_LEVELS, NUM_TRENDS, NeighborContexts
from lightning_compress.packing.symbol_costs import MAX_INTEGER, integer_costs
from lightning_compress.packing.weight_grids import WeightGrid


def integers(shape: tuple[int, ...]) -> np.ndarray:
    """Larger in some rows and channels than in others."""
    rng = np.random.default_rng(0)
    rows, channels = rng.random((shape[0], *[1] * (len(shape) - 1))), rng.random((1, shape[1], *[1] * (len(shape) - 2)))
    return np.rint(40 * rows * channels * rng.standard_normal(shape)).clip(-MAX_INTEGER, MAX_INTEGER).astype(np.int64)


@pytest.mark.parametrize("shape", [(64, 96), (32, 16, 3, 3)])
def test_contexts_are_those_of_the_integers_before(shape: tuple[int, ...]) -> None:
    values = integers(shape)
    grid = WeightGrid.of(shape)
    ordered, expected = grid.from_flat(values.reshape(-1)), NeighborContexts(grid)
    found = grid.from_flat(integer_costs(values.reshape(-1), shape)[0])
    for part in grid.slices():
        place = part.position, part.rows, part.channels
        assert np.array_equal(found[place], expected.of(part))
        expected.update(part, ordered[place].astype(np.int16))


@pytest.mark.parametrize("shape", [(64, 96), (32, 16, 3, 3)])
def test_costs_are_the_size_but_for_what_is_learned(shape: tuple[int, ...]) -> None:
    values = integers(shape).reshape(-1)
    contexts, costs = integer_costs(values, shape)
    assert costs.shape == (NUM_LEVELS * NUM_TRENDS, 2 * MAX_INTEGER + 1)
    assert np.exp2(-costs).sum(axis=1) == pytest.approx(np.ones(len(costs)))
    symbols, meaning = (values + MAX_INTEGER).astype(np.uint8), SignedSymbols(255, MAX_INTEGER, with_zero=True)
    size = model_symbols(symbols, ContextModel.of_neighbors(shape, 255), meaning).num_bytes
    assert 0.8 * size < costs[contexts, symbols].sum() / 8 < size
