"""Fake quantization against that of PyTorch, and gradients against autograd through the same formula."""

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
    qparams_from_range,
    quantize,
)

QPARAMS = [(0, 255, 128.0), (0, 255, 0.0), (0, 255, 255.0), (-127, 127, 0.0), (-7, 7, 0.0), (0, 3, 1.0), (-1, 1, 0.0)]
every_qparams = pytest.mark.parametrize(("quant_min", "quant_max", "zero"), QPARAMS)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_gradient(x: Tensor, rounded: Tensor) -> list[Tensor]:
    # Gradients of their own for every value, so that none stands for another.
    rounded.backward(normal(*rounded.shape, seed=1))
    assert x.grad is not None
    return [rounded.detach(), x.grad]


@every_qparams
def test_per_tensor_is_as_in_pytorch(quant_min: int, quant_max: int, zero: float) -> None:
    scale, ours, theirs = torch.tensor(0.013), normal(500).requires_grad_(), normal(500).requires_grad_()
    expected = torch.fake_quantize_per_tensor_affine(theirs, float(scale), int(zero), quant_min, quant_max)
    found = fake_quantize(ours, scale, torch.tensor(zero), quant_min=quant_min, quant_max=quant_max)
    for mine, reference in zip(with_gradient(ours, found), with_gradient(theirs, expected), strict=True):
        torch.testing.assert_close(mine, reference)


@every_qparams
def test_per_channel_is_as_in_pytorch(quant_min: int, quant_max: int, zero: float) -> None:
    scales = torch.tensor([0.5, 0.01, 0.003])
    ours, theirs = normal(3, 8, 5).requires_grad_(), normal(3, 8, 5).requires_grad_()
    zeros = torch.full((3,), zero)
    expected = torch.fake_quantize_per_channel_affine(theirs, scales, zeros.int(), 0, quant_min, quant_max)
    found = fake_quantize(ours, scales.view(3, 1, 1), zeros.view(3, 1, 1), quant_min=quant_min, quant_max=quant_max)
    for mine, reference in zip(with_gradient(ours, found), with_gradient(theirs, expected), strict=True):
        torch.testing.assert_close(mine, reference)


def test_one_scale_in_python_numbers_is_one_scale_in_tensors() -> None:
    x = normal(300)
    one = fake_quantize(x, torch.tensor(0.05), torch.tensor(9.0), quant_min=0, quant_max=31)
    many = fake_quantize(x, torch.full((300,), 0.05), torch.full((300,), 9.0), quant_min=0, quant_max=31)
    torch.testing.assert_close(one, many)


def test_gradients_of_clipped_values_may_pass() -> None:
    for scale in (torch.tensor(0.1), torch.full((4,), 0.1)):
        x = torch.tensor([-5.0, -0.1, 0.2, 5.0], requires_grad=True)
        fake_quantize(
            x, scale, torch.zeros_like(scale), quant_min=-7, quant_max=7, masks_gradient=False
        ).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [1, 1, 1, 1]
        x.grad = None
        fake_quantize(x, scale, torch.zeros_like(scale), quant_min=-7, quant_max=7).sum().backward()
        assert x.grad.tolist() == [0, 1, 1, 0]


class Rounded(torch.autograd.Function):
    """Rounding with a straight-through gradient; exact, unlike ``x + (round(x) - x).detach()``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


def by_composition(x: Tensor, scale: Tensor, zero: Tensor, quant_min: int, quant_max: int, num_values: int) -> Tensor:
    """The same in operations that autograd knows, with a straight-through estimator for rounding alone."""
    factor = (num_values * max(quant_max, 1)) ** -0.5
    scale, zero = (t * factor + (t - t * factor).detach() for t in (scale, zero))
    rounded_zero = Rounded.apply(zero)
    integers = Rounded.apply(x / scale) + rounded_zero
    # Not torch.clamp, which lets no gradient through at the limits themselves.
    clamped = torch.where(
        (integers >= quant_min) & (integers <= quant_max), integers, integers.detach().clamp(quant_min, quant_max)
    )
    return (clamped - rounded_zero) * scale


@every_qparams
@pytest.mark.parametrize("shape", [(), (3, 1)], ids=["tensor", "channel"])
def test_learned_scales_have_the_gradients_of_the_formula(
    quant_min: int, quant_max: int, zero: float, shape: tuple[int, ...]
) -> None:
    def leaves() -> list[Tensor]:
        scale = torch.full(shape, 0.031).double() + 0.01 * torch.arange(scale_count(shape)).view(shape)
        return [t.double().requires_grad_() for t in (normal(3, 70), scale, torch.full(shape, zero + 0.2))]

    ours, theirs = leaves(), leaves()
    found = fake_quantize_learned(*ours, quant_min=quant_min, quant_max=quant_max, num_values=70)
    expected = by_composition(*theirs, quant_min, quant_max, 70)
    torch.testing.assert_close(found, expected)
    weights = normal(3, 70, seed=2).double()
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    for mine, reference in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine.grad, reference.grad)


def scale_count(shape: tuple[int, ...]) -> int:
    return torch.Size(shape).numel()


def test_at_the_bounds_one_scale_has_the_gradient_of_many() -> None:
    values = torch.tensor([-2.75, -2.5, -2.25, 1.25, 1.5, 1.75])  # the bounds are -2.5 and 1.5
    gradients = []
    for scale in (torch.tensor(1.0), torch.ones(6)):
        x = values.clone().requires_grad_()
        fake_quantize(x, scale, torch.zeros_like(scale), quant_min=-2, quant_max=1).sum().backward()
        gradients.append(x.grad.tolist())
    assert gradients == [[0.0, 0.0, 1.0, 1.0, 0.0, 0.0]] * 2


@pytest.mark.parametrize(
    ("zero", "gradient", "expected"), [(-5.0, -1.0, 0.0), (-5.0, 1.0, -0.5), (4.0, 1.0, 0.0), (4.0, -1.0, 0.5)]
)
def test_a_zero_point_out_of_range_is_only_led_back(zero: float, gradient: float, expected: float) -> None:
    zero_point = torch.tensor(zero, requires_grad=True)
    x = torch.tensor([9.0])
    y = fake_quantize_learned(x, torch.tensor(0.5), zero_point, quant_min=-2, quant_max=1, num_values=1)
    (gradient * y).sum().backward()
    assert zero_point.grad == expected


def test_a_range_is_divided_among_all_levels() -> None:
    lowest, highest = torch.tensor([-1.0]), torch.tensor([4.0])
    for quant_min, quant_max in ((0, 5), (-3, 2)):
        scale, zero_point = qparams_from_range(
            lowest, highest, quant_min=quant_min, quant_max=quant_max, symmetric=False
        )
        assert scale.tolist() == [1.0]
        assert zero_point.tolist() == [quant_min + 1]


def test_learned_gradients_do_not_depend_on_the_split_of_a_batch() -> None:
    x, target = normal(8, 6), normal(8, 6, seed=1)

    def gradient(parts: int) -> Tensor:
        scale = torch.tensor(0.1, requires_grad=True)
        for some, wanted in zip(x.chunk(parts), target.chunk(parts), strict=True):
            rounded = fake_quantize_learned(some, scale, torch.tensor(0.0), quant_min=-3, quant_max=3, num_values=6)
            ((rounded - wanted).square().mean() / parts).backward()
        assert scale.grad is not None
        return scale.grad

    torch.testing.assert_close(gradient(1), gradient(4))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_arithmetic_is_wide_and_the_type_stays(dtype: torch.dtype) -> None:
    x = normal(200).to(dtype)
    for fake in (fake_quantize, lambda *a, **k: fake_quantize_learned(*a, **k, num_values=200)):
        found = fake(x, torch.tensor(0.037), torch.tensor(0.0), quant_min=-127, quant_max=127)
        assert found.dtype is dtype
        wide = torch.promote_types(dtype, torch.float32)
        expected = fake(x.to(wide), torch.tensor(0.037), torch.tensor(0.0), quant_min=-127, quant_max=127)
        assert torch.equal(found, expected.to(dtype))


def test_quantize_and_dequantize_is_fake_quantize() -> None:
    x, scale, zero = (
        normal(4, 50),
        torch.tensor([0.1, 0.02, 0.3, 0.007]).view(4, 1),
        torch.tensor([3.0, 0, 9, 15]).view(4, 1),
    )
    integers = quantize(x, scale, zero, quant_min=0, quant_max=15)
    assert integers.dtype is torch.int32
    assert integers.min() >= 0
    assert integers.max() <= 15
    torch.testing.assert_close((integers - zero) * scale, fake_quantize(x, scale, zero, quant_min=0, quant_max=15))


ENDS = st.floats(-1e6, 1e6, width=32, allow_subnormal=False)


@given(a=ENDS, b=ENDS, bits=st.integers(2, 8), symmetric=st.booleans())
@settings(max_examples=150, deadline=None)
def test_zero_is_zero_and_the_range_is_covered(a: float, b: float, bits: int, symmetric: bool) -> None:
    quant_min, quant_max = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    ends = torch.tensor([min(a, b), max(a, b)])
    scale, zero = qparams_from_range(ends[:1], ends[1:], quant_min=quant_min, quant_max=quant_max, symmetric=symmetric)
    assert scale > 0
    assert zero == zero.round()
    assert quant_min <= zero <= quant_max
    values = torch.cat([ends, torch.zeros(2)])
    values[3] = -0.0
    rounded = fake_quantize(values, scale, zero, quant_min=quant_min, quant_max=quant_max)
    assert torch.equal(rounded[2:], torch.zeros(2))
    assert ((rounded - values).abs() <= 0.51 * scale + 1e-6 * values.abs()).all()


@given(values=st.lists(ENDS, min_size=1, max_size=8), bits=st.integers(2, 8), symmetric=st.booleans())
@settings(max_examples=100, deadline=None)
def test_equal_values_stay_equal(values: list[float], bits: int, symmetric: bool) -> None:
    quant_min, quant_max = (1 - 2 ** (bits - 1), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    x = torch.tensor(values).repeat(3)
    scale, zero = qparams_from_range(x.min(), x.max(), quant_min=quant_min, quant_max=quant_max, symmetric=symmetric)
    first, second, third = fake_quantize(x, scale, zero, quant_min=quant_min, quant_max=quant_max).chunk(3)
    assert torch.equal(first, second)
    assert torch.equal(first, third)
    again = fake_quantize(first, scale, zero, quant_min=quant_min, quant_max=quant_max)
    torch.testing.assert_close(again, first)  # idempotent


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-45, 1e-30, -1e-30, 3.0, -2.0, 3e38])
def test_constant_tensors_are_finite(value: float, symmetric: bool) -> None:
    quant_min, quant_max = (-127, 127) if symmetric else (0, 255)
    x = torch.full((4,), value, requires_grad=True)
    ends = x.detach()[:1]
    scale, zero = qparams_from_range(ends, ends, quant_min=quant_min, quant_max=quant_max, symmetric=symmetric)
    rounded = fake_quantize(x, scale, zero, quant_min=quant_min, quant_max=quant_max)
    rounded.sum().backward()
    assert torch.isfinite(rounded).all()
    assert torch.isfinite(scale).all()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()


def test_empty_and_tiny_channels_have_a_floor_beside_the_largest() -> None:
    largest = torch.tensor([12.7, 0.0, 1e-20, 0.127])
    scale, _ = qparams_from_range(-largest, largest, quant_min=-127, quant_max=127, symmetric=True)
    torch.testing.assert_close(scale, torch.tensor([0.1, 1e-5, 1e-5, 0.001]), rtol=1e-4, atol=0.0)


def test_qparams_of_no_channels() -> None:
    scale, zero = qparams_from_range(torch.empty(0), torch.empty(0), quant_min=-7, quant_max=7, symmetric=True)
    assert scale.shape == zero.shape == (0,)


@pytest.mark.parametrize("masks_gradient", [True, False])
@every_qparams
def test_compiled_code_computes_the_same(quant_min: int, quant_max: int, zero: float, masks_gradient: bool) -> None:
    def rounded(x: Tensor) -> Tensor:
        qparams = {"quant_min": quant_min, "quant_max": quant_max, "masks_gradient": masks_gradient}
        return fake_quantize(x.relu(), torch.tensor(0.013), torch.tensor(zero), **qparams)

    torch.compiler.reset()  # each case compiles the same code once more, which has a limit
    compiled = torch.compile(rounded, fullgraph=True, backend="aot_eager")
    results = [
        with_gradient(x, function(x)) for function in (rounded, compiled) for x in [normal(500).requires_grad_()]
    ]
    for mine, reference in zip(*results, strict=True):
        assert torch.equal(mine, reference)


def test_compiled_code_learns_the_same() -> None:
    def gradients(function: Any) -> list[Tensor]:
        parameters = [normal(4, 50), torch.tensor(0.4), torch.tensor(2.3)]
        x, scale, zero = (parameter.requires_grad_() for parameter in parameters)
        rounded = function(x, scale, zero, quant_min=0, quant_max=7, num_values=50)
        return [*with_gradient(x, rounded), *(parameter.grad for parameter in (scale, zero))]

    compiled = torch.compile(fake_quantize_learned, fullgraph=True, backend="aot_eager")
    for mine, reference in zip(gradients(compiled), gradients(fake_quantize_learned), strict=True):
        assert torch.equal(mine, reference)


def test_the_scale_of_a_tensor_of_zeros() -> None:
    zeros = torch.zeros(2)
    scale, zero_point = qparams_from_range(zeros, zeros, quant_min=-127, quant_max=127, symmetric=True)
    assert scale.tolist() == pytest.approx([1 / 127, 1 / 127])
    assert zero_point.tolist() == [0, 0]
