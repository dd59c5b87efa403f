"""Symbols coded by adaptive frequencies in contexts of neighbors."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from lightning_compress.packing.adaptive_frequencies import AdaptiveFrequencies
from lightning_compress.packing.context_coding import ContextModel, SignedSymbols, decode, model_symbols
from lightning_compress.packing.neighbor_contexts import NUM_LEVELS, NUM_TRENDS, NeighborContexts
from lightning_compress.packing.weight_grids import WeightGrid

MEANING = SignedSymbols(9, 4, with_zero=True)


def weights(*shape: int) -> np.ndarray:
    """Integers with rows, channels and kernels of different magnitudes, by integer arithmetic alone."""
    size = int(np.prod(shape))
    numbers = (np.arange(1, size + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(33)
    grid = (numbers % np.uint64(9)).astype(np.int64).reshape(shape[0], -1) - 4
    return np.sign(grid) * (np.abs(grid) * (1 + np.arange(shape[0])[:, None] % 4) // 4).reshape(grid.shape)


def coded(shape: tuple[int, ...]) -> tuple[bytes, np.ndarray, float]:
    symbols = (weights(*shape) + 4).astype(np.uint8).reshape(-1)
    code = model_symbols(symbols, ContextModel.of_neighbors(shape, 9), MEANING)
    return code.encode(), symbols, code.num_bytes


@pytest.mark.parametrize(
    "shape",
    [(1,), (100,), (1, 1), (3, 200), (200, 3), (7, 5, 3, 3), (5, 7, 1, 1), (4, 3, 2, 5), (6, 1, 5, 5), (3, 2, 16, 16),
     (2, 3, 3, 3, 3), (64, 64, 3, 3)],
)  # fmt: skip
def test_symbols_come_back(shape: tuple[int, ...]) -> None:
    data, symbols, expected = coded(shape)
    assert np.array_equal(decode(data, ContextModel.of_neighbors(shape, 9), MEANING), symbols)
    assert abs(len(data) - expected) <= 8


def test_every_element_is_in_one_slice() -> None:
    for shape in ((1,), (5, 700), (700, 5), (33, 17, 3, 3), (2, 2, 64, 64)):
        grid = WeightGrid.of(shape)
        seen = np.zeros((grid.num_positions, grid.num_rows, grid.num_channels), int)
        for part in grid.slices():
            seen[part.position, part.rows, part.channels] += 1
        assert (seen == 1).all()
        flat = np.arange(seen.size)
        assert np.array_equal(grid.to_flat(grid.from_flat(flat)), flat)


def test_the_bytes_are_the_same_on_every_machine() -> None:
    """They are part of the format: a difference makes all files of this version unreadable."""
    assert zlib.crc32(coded((32, 16, 3, 3))[0]) == 4060572914
    assert zlib.crc32(coded((48, 96))[0]) == 3492184999


def test_frequencies_are_integers_of_at_least_one() -> None:
    frequencies = AdaptiveFrequencies(9)
    counts = np.zeros((NUM_LEVELS * NUM_TRENDS, 9), np.int64)
    counts[0, 0] = 2**36
    frequencies.update(counts)
    tables = frequencies.tables()
    assert tables.dtype == np.int64
    assert tables.min() == 1
    assert (tables.sum(axis=1) < 2**22).all()


def test_the_largest_integers_do_not_overflow() -> None:
    for size in (1, 511):
        grid = WeightGrid.of((40, 30, 8, 8))
        contexts = NeighborContexts(grid)
        for part in grid.slices():
            found = contexts.of(part)
            assert found.max() < NUM_LEVELS * NUM_TRENDS
            values = np.zeros(found.shape, np.int16)
            values[::3, ::5] = size
            contexts.update(part, values)
        # The weights that have been large in all positions are expected to be so in the last one.
        assert (found[::3, ::5] > 11 * NUM_TRENDS).all()
        assert (found[::3, ::5] % NUM_TRENDS == NUM_TRENDS - 1).all()


def test_rows_of_different_magnitudes_take_less_than_their_entropy() -> None:
    data, symbols, _ = coded((64, 64, 3, 3))
    counts = np.bincount(symbols)
    counts = counts[counts > 0]
    assert len(data) < 0.9 * (counts * np.log2(counts.sum() / counts)).sum() / 8
