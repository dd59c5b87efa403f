"""Rounding to a grid of integers and back, with straight-through gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Rounding:
    """``clamp(round(x / scale), quant_min, quant_max) * scale`` around a whole zero point, and what of a gradient it passes.

    On a CPU a single scale is a Python number: all is done in place, and the backward pass needs no byte mask.
    """

    def __init__(self, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> None:
        self.scale: Any = scale
        self.is_number = scale.numel() == 1 and scale.device.type == "cpu" and not torch.compiler.is_compiling()
        whole: Any = zero_point
        if self.is_number:
            self.scale, whole = scale.item(), zero_point.item()
        self.lowest, self.highest = quant_min - whole, quant_max - whole

    def round(self, x: Tensor) -> Tensor:
        if self.is_number:
            return (x * (1 / self.scale)).round_().clamp_(self.lowest, self.highest).mul_(self.scale)
        return torch.minimum(torch.maximum(torch.round(x / self.scale), self.lowest), self.highest) * self.scale

    def passed(self, grad: Tensor, x: Tensor) -> Tensor:
        quant_min, quant_max = (self.lowest - 0.5) * self.scale, (self.highest + 0.5) * self.scale
        if self.is_number:
            return torch.ops.aten.hardtanh_backward(grad, x, quant_min, quant_max)
        return grad * ((x >= quant_min) & (x <= quant_max))


class _FakeQuantize(torch.autograd.Function):
    """Rounding with a fixed step."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, masks_gradient: bool
    ) -> Tensor:
        ctx.quant_min, ctx.quant_max, ctx.masks_gradient = quant_min, quant_max, masks_gradient
        if masks_gradient:
            ctx.save_for_backward(x, scale, zero_point)
        return _Rounding(scale, zero_point, quant_min, quant_max).round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        if ctx.masks_gradient:
            x, scale, zero_point = ctx.saved_tensors
            grad = _Rounding(scale, zero_point, ctx.quant_min, ctx.quant_max).passed(grad, x)
        return grad, None, None, None, None, None


class _LearnedStep(torch.autograd.Function):
    """As above, with gradients for the step and the zero point: LSQ (arXiv:1902.08153), LSQ+ (arXiv:2004.09576)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, factor: float
    ) -> Tensor:
        ctx.quant_min, ctx.quant_max, ctx.factor = quant_min, quant_max, factor
        ctx.save_for_backward(x, scale, zero_point)
        return _Rounding(
            scale, round_zero_point(zero_point, quant_min=quant_min, quant_max=quant_max), quant_min, quant_max
        ).round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, scale, zero_point = ctx.saved_tensors
        rounding = _Rounding(
            scale,
            round_zero_point(zero_point, quant_min=ctx.quant_min, quant_max=ctx.quant_max),
            ctx.quant_min,
            ctx.quant_max,
        )
        y = rounding.round(x)  # once more: what was returned may have been added to in place
        passed = rounding.passed(grad, x)
        clipped = grad - passed
        # Of the step: y / scale where clipped, (y - x) / scale elsewhere. Of the zero point: -scale where clipped.
        to_scale = (_sum_of_products(passed, y - x, scale) + _sum_of_products(clipped, y, scale)) / scale
        to_zero = -scale * _sum_to(clipped, zero_point) if ctx.needs_input_grad[2] else None
        if to_zero is not None:  # beyond the integers, what leads back to them
            whole = torch.round(zero_point)
            outwards = ((whole < ctx.quant_min) & (to_zero > 0)) | ((whole > ctx.quant_max) & (to_zero < 0))
            to_zero = to_zero.masked_fill(outwards, 0.0)
        return passed, to_scale * ctx.factor, None if to_zero is None else to_zero * ctx.factor, None, None, None


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, quant_min: int, quant_max: int, masks_gradient: bool = True
) -> Tensor:
    """Rounds to integers in ``[quant_min, quant_max]`` and back; of ``x``'s dtype, computed in float32 or wider.

    Args:
        x: Any shape.
        scale: Step, positive, of a shape that broadcasts against ``x``.
        zero_point: The integer that stands for 0.0, as a floating tensor of ``scale``'s shape.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        masks_gradient: Whether what is clipped gets no gradient.

    >>> fake_quantize(torch.tensor([0.26, -3.0]), torch.tensor(0.5), torch.tensor(0.0), quant_min=-2, quant_max=1).tolist()
    [0.5, -1.0]
    """
    return _FakeQuantize.apply(_wide(x), scale, zero_point, quant_min, quant_max, masks_gradient).to(x.dtype)


def fake_quantize_learned(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, quant_min: int, quant_max: int, num_values: int
) -> Tensor:
    """As :func:`fake_quantize`, with gradients for scale and zero point, scaled by ``1 / sqrt(num_values * quant_max)``.

    Esser et al. 2020 (arXiv:1902.08153); with an offset Bhalgat et al. 2020 (arXiv:2004.09576).

    Args:
        x: Any shape.
        scale: As in :func:`fake_quantize`.
        zero_point: As in :func:`fake_quantize`.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        num_values: Values that share a scale: weights, or features of one sample (not of a batch, which accumulation
            and ranks may divide in any way).
    """
    factor = (num_values * max(quant_max, 1)) ** -0.5
    return _LearnedStep.apply(_wide(x), scale, zero_point, quant_min, quant_max, factor).to(x.dtype)


def round_zero_point(zero_point: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """A zero point that was averaged or learned as it is applied: an integer that there is, so that 0.0 stays 0.0.

    >>> round_zero_point(torch.tensor([2.6, -0.7]), quant_min=0, quant_max=15).tolist()
    [3.0, 0.0]
    """
    return torch.round(zero_point).clamp(quant_min, quant_max)


def to_integers(x: Tensor, scale: Tensor, zero_point: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """The integers, as int32, that stand for ``x``; shapes as in :func:`fake_quantize`.

    >>> to_integers(torch.tensor([0.26, -3.0]), torch.tensor(0.5), torch.tensor(128.0), quant_min=0, quant_max=255).tolist()
    [129, 122]
    """
    return (torch.round(_wide(x) / scale) + zero_point).clamp(quant_min, quant_max).to(torch.int32)


def qparams_from_range(
    lowest: Tensor, highest: Tensor, *, quant_min: int, quant_max: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Scale and zero point of a grid on which ``[lowest, highest]`` and 0.0 lie.

    A scale is never below 1e-4 of the largest beside it in the last dimension, and never zero: constant tensors and
    empty channels stay finite, and so do integer biases.

    Args:
        lowest: Smallest values, any shape.
        highest: Largest values, of the same shape.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        symmetric: Whether the zero point is zero; ``quant_min`` is then expected to be ``-quant_max``.

    >>> qparams_from_range(torch.tensor(-1.0), torch.tensor(3.0), quant_min=0, quant_max=255, symmetric=False)
    (tensor(0.0157), tensor(64.))
    """
    lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
    span = torch.maximum(-lowest, highest) / quant_max if symmetric else (highest - lowest) / (quant_max - quant_min)
    largest = span.amax(dim=-1, keepdim=True) if span.ndim and span.numel() else span
    scale = span.clamp(min=torch.finfo(torch.float32).tiny * 2**24).maximum(largest * 1e-4)
    scale = torch.where(largest > 0, scale, torch.ones_like(scale) / quant_max)
    if symmetric:
        return scale, torch.zeros_like(scale)
    return scale, torch.round(quant_min - lowest / scale).clamp(quant_min, quant_max)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    return torch.dot(a.flatten(), b.flatten()) if not like.ndim else _sum_to(a * b, like)


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    return values.sum_to_size(like.shape) if like.ndim else values.sum()
