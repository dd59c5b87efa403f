"""Positions of nonzero elements, on small masks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_compress.packing.column_masks import COLUMN_MASK
from lightning_compress.packing.encoding_types import PositionEncoding
from lightning_compress.packing.encodings import POSITIONS
from lightning_compress.packing.gaps import GAPS
from lightning_compress.packing.neighbor_masks import NEIGHBOR_MASK
from lightning_compress.packing.streams import Stream


@pytest.mark.parametrize("encoding", POSITIONS, ids=lambda encoding: encoding.kind)
@pytest.mark.parametrize("shape", [(32, 2), (4, 16), (7, 301), (40, 5, 3, 3), (4, 2)])
@pytest.mark.parametrize("density", [0.0, 0.02, 0.5, 1.0])
def test_masks_come_back(encoding: PositionEncoding, shape: tuple[int, ...], density: float) -> None:
    size = math.prod(shape)
    nonzero = np.random.default_rng(0).random(size) < density
    plan = encoding.plan(nonzero, shape)
    assert (plan is None) == (encoding is NEIGHBOR_MASK and size == 8)
    if plan is not None:
        (stream,) = plan.make()
        assert np.array_equal(encoding.read(stream, shape), nonzero)
        assert abs(len(stream.data) - plan.num_bytes) <= 9


@pytest.mark.parametrize("shape", [(3, 100), (100, 1), (100,)])
def test_masks_without_columns_to_learn(shape: tuple[int, ...]) -> None:
    assert COLUMN_MASK.plan(np.arange(math.prod(shape)) % 2 == 0, shape) is None
    with pytest.raises(ValueError, match="do not have a mask by columns"):
        COLUMN_MASK.read(Stream("columns", b"", (1, 2**15)), shape)


@pytest.mark.parametrize(("gap", "num_bits"), [(6, 3), (14, 4), (62, 6), (254, 8)])
def test_gaps_of_one_length_in_a_fixed_number_of_bits(gap: int, num_bits: int) -> None:
    nonzero = np.arange(1000 * (gap + 1)) % (gap + 1) == gap
    plan = GAPS.plan(nonzero, nonzero.shape)
    assert plan is not None
    assert plan.num_fixed_bytes == 1000 * num_bits / 8
