"""Positions of nonzero elements, on small masks."""

from __future__ import annotations

import numpy as np
import pytest

from lightning_compress.packing.gaps import GAPS


@pytest.mark.parametrize(("gap", "num_bits"), [(6, 3), (14, 4), (62, 6), (254, 8)])
def test_gaps_of_one_length_in_a_fixed_number_of_bits(gap: int, num_bits: int) -> None:
    nonzero = np.arange(1000 * (gap + 1)) % (gap + 1) == gap
    plan = GAPS.plan(nonzero, nonzero.shape)
    assert plan is not None
    assert plan.num_fixed_bytes == 1000 * num_bits / 8
