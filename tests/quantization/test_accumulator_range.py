"""Limits of weights for 16-bit sums of two products."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.quantization.accumulator_range import limit_pair_sums_
from lightning_compress.quantization.insertion import quantizers_of
from lightning_compress.quantization.simulation import simulate
from tests.cases import assert_same


def weights_after(model: nn.Module, x: Tensor, **specs: lc.Int) -> tuple[bool, Tensor]:
    """Return if scales were changed, and the integers of the weight."""
    quantized = lc.calibrate(model, [x], **specs)
    changed = limit_pair_sums_(simulate(quantized, x))
    ref = next(ref for ref in quantizers_of(quantized) if ref.quantizer.is_weight)
    return changed, ref.quantizer.to_integers(ref.module, ref.module.get_parameter("weight"))


def saturating_sums(weights: Tensor, activations: Tensor) -> Tensor:
    """Multiply as x86 kernels without VNNI do: products of two neighbours are added in 16 bits, which saturate."""
    products = weights[:, None, :] * activations[None]
    return products.unflatten(2, (-1, 2)).sum(dim=3).clamp(-(2**15), 2**15 - 1).sum(dim=2)


@given(seed=st.integers(0, 10_000), spread=st.floats(0.0, 3.0), granularity=st.sampled_from(["channel", "tensor"]))
def test_no_sum_of_two_products_overflows(seed: int, spread: float, granularity: str) -> None:
    torch.manual_seed(seed)
    model = nn.Linear(16, 5)
    with torch.no_grad():
        model.weight.copy_(torch.randn(5, 16).sign() * (1 + spread * torch.rand(5, 16)))
    _, integers = weights_after(model, torch.randn(4, 16), weights=lc.Int(8, granularity=granularity))  # type: ignore[arg-type]
    shuffled = integers.long()[:, torch.randperm(16)]
    for activations in (torch.full((1, 16), 255), torch.randint(0, 2, (8, 16)) * 255):
        assert_same(saturating_sums(shuffled, activations), shuffled @ activations.T)
    assert integers.abs().max() >= 63


def test_full_range_weights_overflow() -> None:
    weights, activations = torch.tensor([[127, 100]]), torch.tensor([[255, 255]])
    assert saturating_sums(weights, activations) != weights @ activations.T


@pytest.mark.parametrize("bits", [4, 7])
def test_weights_of_fewer_bits_stay(bits: int) -> None:
    torch.manual_seed(0)
    changed, integers = weights_after(nn.Linear(8, 4), torch.randn(4, 8), weights=lc.Int(bits))
    assert not changed
    assert integers.abs().max() == 2 ** (bits - 1) - 1


def test_a_channel_with_one_large_weight_keeps_8_bits() -> None:
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[127.0, -100.0, 1.0, 0.0], [127.0, 100.0, 1.0, 0.0]]))
    changed, integers = weights_after(model, torch.randn(4, 4))
    assert changed
    assert_same(integers, torch.tensor([[127, -100, 1, 0], [71, 56, 1, 0]], dtype=torch.int32))


def test_a_layer_that_is_called_twice_is_limited_once() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.fc(x))

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(8, 4)
    once, twice = lc.calibrate(model.fc, [x]), lc.calibrate(model, [x])
    for each in (once, twice):
        limit_pair_sums_(simulate(each, x))
    assert_same([once.quant_weight_scale], [twice.fc.quant_weight_scale])


@pytest.mark.parametrize(("channels", "groups", "is_limited"), [(4, 4, False), (8, 4, True), (4, 2, True)])
def test_depthwise_convolutions_keep_8_bits(channels: int, groups: int, is_limited: bool) -> None:
    torch.manual_seed(0)
    changed, _ = weights_after(nn.Conv1d(4, channels, 3, groups=groups), torch.randn(2, 4, 8))
    assert changed is is_limited
