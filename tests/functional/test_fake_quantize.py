"""Rounding against PyTorch's own, and gradients against autograd through the same formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional.fake_quantize import (
    fake_quantize,
    fake_quantize_learned,
    scale_of_range,
    to_integers,
)

GRIDS = [(0, 255, 128.0), (0, 255, 0.0), (0, 255, 255.0), (-127, 127, 0.0), (-7, 7, 0.0), (0, 3, 1.0), (-1, 1, 0.0)]
every_grid = pytest.mark.parametrize(("low", "high", "zero"), GRIDS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_gradient(x: Tensor, rounded: Tensor) -> list[Tensor]:
    # Gradients of their own for every value, so that none stands for another.
    rounded.backward(normal(*rounded.shape, seed=1))
    assert x.grad is not None
    return [rounded.detach(), x.grad]


@every_grid
def test_per_tensor_is_as_in_pytorch(low: int, high: int, zero: float) -> None:
    scale, ours, theirs = torch.tensor(0.013), normal(500).requires_grad_(), normal(500).requires_grad_()
    expected = torch.fake_quantize_per_tensor_affine(theirs, float(scale), int(zero), low, high)
    found = fake_quantize(ours, scale, torch.tensor(zero), low=low, high=high)
    for mine, reference in zip(with_gradient(ours, found), with_gradient(theirs, expected), strict=True):
        torch.testing.assert_close(mine, reference)


@every_grid
def test_per_channel_is_as_in_pytorch(low: int, high: int, zero: float) -> None:
    scales = torch.tensor([0.5, 0.01, 0.003])
    ours, theirs = normal(3, 8, 5).requires_grad_(), normal(3, 8, 5).requires_grad_()
    zeros = torch.full((3,), zero)
    expected = torch.fake_quantize_per_channel_affine(theirs, scales, zeros.int(), 0, low, high)
    found = fake_quantize(ours, scales.view(3, 1, 1), zeros.view(3, 1, 1), low=low, high=high)
    for mine, reference in zip(with_gradient(ours, found), with_gradient(theirs, expected), strict=True):
        torch.testing.assert_close(mine, reference)


def test_one_scale_in_python_numbers_is_one_scale_in_tensors() -> None:
    x = normal(300)
    one = fake_quantize(x, torch.tensor(0.05), torch.tensor(9.0), low=0, high=31)
    many = fake_quantize(x, torch.full((300,), 0.05), torch.full((300,), 9.0), low=0, high=31)
    torch.testing.assert_close(one, many)


def test_gradients_of_what_is_clipped_may_pass() -> None:
    for scale in (torch.tensor(0.1), torch.full((4,), 0.1)):
        x = torch.tensor([-5.0, -0.1, 0.2, 5.0], requires_grad=True)
        fake_quantize(x, scale, torch.zeros_like(scale), low=-7, high=7, masks_gradient=False).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [1, 1, 1, 1]
        x.grad = None
        fake_quantize(x, scale, torch.zeros_like(scale), low=-7, high=7).sum().backward()
        assert x.grad.tolist() == [0, 1, 1, 0]


class Rounded(torch.autograd.Function):
    """Rounding with a straight-through gradient; exact, unlike ``x + (round(x) - x).detach()``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def by_composition(x: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, num_values: int) -> Tensor:
    """The same in operations that autograd knows, with a straight-through estimator for rounding alone."""
    factor = (num_values * max(high, 1)) ** -0.5
    scale, zero = (t * factor + (t - t * factor).detach() for t in (scale, zero))
    whole = Rounded.apply(zero)
    integers = Rounded.apply(x / scale) + whole
    # Not torch.clamp, which lets no gradient through at the limits themselves.
    clamped = torch.where((integers >= low) & (integers <= high), integers, integers.detach().clamp(low, high))
    return (clamped - whole) * scale


@every_grid
@pytest.mark.parametrize("shape", [(), (3, 1)], ids=["tensor", "channel"])
def test_learned_steps_have_the_gradients_of_the_formula(
    low: int, high: int, zero: float, shape: tuple[int, ...]
) -> None:
    def leaves() -> list[Tensor]:
        scale = torch.full(shape, 0.031).double() + 0.01 * torch.arange(scale_count(shape)).view(shape)
        return [t.double().requires_grad_() for t in (normal(3, 70), scale, torch.full(shape, zero + 0.2))]

    ours, theirs = leaves(), leaves()
    found = fake_quantize_learned(*ours, low=low, high=high, num_values=70)
    expected = by_composition(*theirs, low, high, 70)
    torch.testing.assert_close(found, expected)
    weights = normal(3, 70, seed=2).double()
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


def scale_count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def test_learned_gradients_do_not_hang_on_the_division_of_a_batch() -> None:
    x, target = normal(8, 6), normal(8, 6, seed=1)

    def gradient(parts: int) -> Tensor:
        scale = torch.tensor(0.1, requires_grad=True)
        for some, wanted in zip(x.chunk(parts), target.chunk(parts), strict=True):
            rounded = fake_quantize_learned(some, scale, torch.tensor(0.0), low=-3, high=3, num_values=6)
            ((rounded - wanted).square().mean() / parts).backward()
        assert scale.grad is not None
        return scale.grad

    torch.testing.assert_close(gradient(1), gradient(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arithmetic_is_wide_and_the_type_stays(dtype: torch.dtype) -> None:
    x = normal(200).to(dtype)
    for fake in (fake_quantize, lambda *a, **k: fake_quantize_learned(*a, **k, num_values=200)):
        found = fake(x, torch.tensor(0.037), torch.tensor(0.0), low=-127, high=127)
        assert found.dtype is dtype
        wide = torch.promote_types(dtype, torch.float32)
        expected = fake(x.to(wide), torch.tensor(0.037), torch.tensor(0.0), low=-127, high=127)
        assert torch.equal(found, expected.to(dtype))


def test_integers_are_what_is_rounded_to() -> None:
    x, scale, zero = (
        normal(4, 50),
        torch.tensor([0.1, 0.02, 0.3, 0.007]).view(4, 1),
        torch.tensor([3.0, 0, 9, 15]).view(4, 1),
    )
    integers = to_integers(x, scale, zero, low=0, high=15)
    assert integers.dtype is torch.int32
    assert integers.min() >= 0
    assert integers.max() <= 15
    torch.testing.assert_close((integers - zero) * scale, fake_quantize(x, scale, zero, low=0, high=15))


ENDS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@given(a=ENDS, b=ENDS, bits=st.integers(2, 8), symmetric=st.booleans())
@settings(max_examples=150, deadline=None)
def test_zero_is_zero_and_the_range_is_covered(a: float, b: float, bits: int, symmetric: bool) -> None:
    low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    ends = torch.tensor([min(a, b), max(a, b)])
    scale, zero = scale_of_range(ends[:1], ends[1:], low=low, high=high, symmetric=symmetric)
    assert scale > 0
    assert zero == zero.round()
    assert low <= zero <= high
    values = torch.cat([ends, torch.zeros(2)])
    values[3] = -0.0
    rounded = fake_quantize(values, scale, zero, low=low, high=high)
    assert torch.equal(rounded[2:], torch.zeros(2))
    assert ((rounded - values).abs() <= 0.51 * scale + 1e-6 * values.abs()).all()


@given(values=st.lists(ENDS, min_size=1, max_size=8), bits=st.integers(2, 8), symmetric=st.booleans())
@settings(max_examples=100, deadline=None)
def test_equal_values_stay_equal(values: list[float], bits: int, symmetric: bool) -> None:
    low, high = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    x = torch.tensor(values).repeat(3)
    scale, zero = scale_of_range(x.min(), x.max(), low=low, high=high, symmetric=symmetric)
    first, second, third = fake_quantize(x, scale, zero, low=low, high=high).chunk(3)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    again = fake_quantize(first, scale, zero, low=low, high=high)
    torch.testing.assert_close(again, first)  # what is on the grid stays there


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, -1e-30, 3.0, -2.0, 3e38])
def test_constant_tensors_are_finite(value: float, symmetric: bool) -> None:
    low, high = (-127, 127) if symmetric else (0, 255)
    x = torch.full((4,), value, requires_grad=True)
    ends = x.detach()[:1]
    scale, zero = scale_of_range(ends, ends, low=low, high=high, symmetric=symmetric)
    rounded = fake_quantize(x, scale, zero, low=low, high=high)
    rounded.sum().backward()
    assert torch.isfinite(rounded).all()
    assert torch.isfinite(scale).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_empty_and_tiny_channels_have_a_floor_beside_the_largest() -> None:
    largest = torch.tensor([12.7, 0.0, 1e-20, 0.127])
    scale, _ = scale_of_range(-largest, largest, low=-127, high=127, symmetric=True)
    torch.testing.assert_close(scale, torch.tensor([0.1, 1e-5, 1e-5, 0.001]), rtol=1e-4, atol=0.0)


def test_no_channels_are_no_crash() -> None:
    scale, zero = scale_of_range(torch.empty(0), torch.empty(0), low=-7, high=7, symmetric=True)
    assert scale.shape == zero.shape == (0,)
