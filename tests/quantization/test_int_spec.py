from __future__ import annotations

from typing import Any

import pytest

import lightning_compress as lc


@pytest.mark.parametrize("bits", [1, 9, 0, -4, 32, 8.0, True, "8", None])
def test_invalid_bits(bits: Any) -> None:
    with pytest.raises(ValueError, match=r"must be an integer from 2 to 8; None keeps layers in FP32"):
        lc.Int(bits)


@pytest.mark.parametrize("granularity", ["row", "", 0, 1, -8, True, 2.5])
def test_invalid_granularities(granularity: Any) -> None:
    with pytest.raises(ValueError, match="must be 'tensor', 'channel' or a group size above 1"):
        lc.Int(8, granularity=granularity)


@pytest.mark.parametrize("granularity", ["channel", 32])
def test_activations_share_one_scale(granularity: Any) -> None:
    with pytest.raises(ValueError, match=r"activations: Int\(granularity=.* is for weights"):
        lc.Int(8, granularity=granularity).for_activations()


@pytest.mark.parametrize("bits", range(2, 9))
def test_smallest_and_largest_integer(bits: int) -> None:
    weights, activations = lc.Int(bits).for_weights(), lc.Int(bits).for_activations()
    assert (weights.quant_min, weights.quant_max) == (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1)
    assert (activations.quant_min, activations.quant_max) == (0, 2**bits - 1)


def test_defaults_of_weights_and_activations() -> None:
    assert lc.Int(8).for_weights() == lc.Int(8, symmetric=True, granularity="channel", observer=lc.MinMax())
    assert lc.Int(8).for_activations() == lc.Int(8, symmetric=False, granularity="tensor", observer=lc.MovingAverage())


def test_given_fields_are_kept() -> None:
    weights = lc.Int(4, symmetric=False, granularity=16, observer=lc.MSE())
    assert weights.for_weights() == weights
    activations = lc.Int(4, symmetric=True, granularity="tensor", observer=lc.Histogram())
    assert activations.for_activations() == activations
