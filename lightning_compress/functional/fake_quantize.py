"""Fake quantization with straight-through gradients, with a fixed or a learned scale (LSQ)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

MIN_SCALE = torch.finfo(torch.float32).tiny * 2**24
"""Smallest scale, 2**24 times the smallest normal float32.

Its reciprocal is finite, and its 24-bit rounding errors are normal numbers too: devices that flush subnormal numbers to
zero compute the same.
"""


class _RoundAndClip:
    """Forward and backward of ``clamp(round(x / scale), quant_min - z, quant_max - z) * scale`` for integer ``z``.

    The zero point ``z`` shifts the bounds instead of the rounded values: equal to adding and subtracting it, as it is
    an integer, but two passes over ``x`` fewer.
    """

    def __init__(self, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> None:
        self.scale: Any = scale
        # On CPU a scalar scale becomes a Python number: rounding, clamping and scaling then share one allocation, and
        # the backward pass needs no boolean mask. On CUDA item() would synchronize; under torch.compile it breaks the
        # graph.
        self.is_number = scale.numel() == 1 and scale.device.type == "cpu" and not torch.compiler.is_compiling()
        offset: Any = zero_point
        if self.is_number:
            self.scale, offset = scale.item(), zero_point.item()
        self.lower, self.upper = quant_min - offset, quant_max - offset

    def round(self, x: Tensor) -> Tensor:
        if self.is_number:
            return (x * (1 / self.scale)).round_().clamp_(self.lower, self.upper).mul_(self.scale)
        return torch.minimum(torch.maximum(torch.round(x / self.scale), self.lower), self.upper) * self.scale

    def mask_gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """Zero the gradient where ``x`` was clipped."""
        # Values within half a step of the outermost level are rounded to it, not clipped.
        lower, upper = (self.lower - 0.5) * self.scale, (self.upper + 0.5) * self.scale
        if self.is_number:
            # The derivative of hardtanh is 1 inside the bounds and 0 outside: the same mask in one fused kernel.
            return torch.ops.aten.hardtanh_backward(grad, x, lower, upper)
        return grad * ((x > lower) & (x < upper))  # the bounds are left out, as hardtanh does


class _FakeQuantize(torch.autograd.Function):
    """Fake quantization with a fixed scale; straight-through gradient for ``x``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, masks_gradient: bool
    ) -> Tensor:
        ctx.quant_min, ctx.quant_max, ctx.masks_gradient = quant_min, quant_max, masks_gradient
        if masks_gradient:
            ctx.save_for_backward(x, scale, zero_point)
        return _RoundAndClip(scale, zero_point, quant_min, quant_max).round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        if ctx.masks_gradient:
            x, scale, zero_point = ctx.saved_tensors
            grad = _RoundAndClip(scale, zero_point, ctx.quant_min, ctx.quant_max).mask_gradient(grad, x)
        return grad, None, None, None, None, None


class _LearnedFakeQuantize(torch.autograd.Function):
    """Fake quantization with gradients for scale and zero point: LSQ (arXiv:1902.08153), LSQ+ (arXiv:2004.09576)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, factor: float
    ) -> Tensor:
        ctx.quant_min, ctx.quant_max, ctx.factor = quant_min, quant_max, factor
        ctx.save_for_backward(x, scale, zero_point)
        return _RoundAndClip(
            scale, round_zero_point(zero_point, quant_min=quant_min, quant_max=quant_max), quant_min, quant_max
        ).round(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (grad,) = grads
        x, scale, zero_point = ctx.saved_tensors
        rounding = _RoundAndClip(
            scale,
            round_zero_point(zero_point, quant_min=ctx.quant_min, quant_max=ctx.quant_max),
            ctx.quant_min,
            ctx.quant_max,
        )
        # Computed again instead of saved: the caller may have modified the returned tensor in place.
        y = rounding.round(x)
        passed = rounding.mask_gradient(grad, x)
        clipped = grad - passed
        # With a straight-through estimator for round, dy/dscale is round(x / scale) - x / scale = (y - x) / scale
        # inside the range, and the bound itself, y / scale, where x is clipped.
        to_scale = (_sum_of_products(passed, y - x, scale) + _sum_of_products(clipped, y, scale)) / scale
        # The zero point cancels inside the range; where x is clipped it moves the bound: dy/dzero_point = -scale.
        to_zero = -scale * _sum_to(clipped, zero_point) if ctx.needs_input_grad[2] else None
        if to_zero is not None:
            # The forward pass clamps the zero point to [quant_min, quant_max]. Beyond, only the gradient that leads
            # back is kept: zeroing both directions would leave it stuck there.
            rounded = torch.round(zero_point)
            outwards = ((rounded < ctx.quant_min) & (to_zero > 0)) | ((rounded > ctx.quant_max) & (to_zero < 0))
            to_zero = to_zero.masked_fill(outwards, 0.0)
        return passed, to_scale * ctx.factor, None if to_zero is None else to_zero * ctx.factor, None, None, None


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, quant_min: int, quant_max: int, masks_gradient: bool = True
) -> Tensor:
    """Quantize to integers in ``[quant_min, quant_max]`` and dequantize, with a straight-through gradient for ``x``.

    Args:
        x: Tensor of any shape.
        scale: Positive step between levels, of a shape that broadcasts against ``x``.
        zero_point: Integer that represents 0.0, as a floating-point tensor of ``scale``'s shape.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        masks_gradient: If True, clipped values get no gradient; if False, the gradient passes everywhere.

    Returns:
        Tensor of ``x``'s shape and dtype, computed in float32 or float64.

    >>> x, scale, zero_point = torch.tensor([0.26, -3.0]), torch.tensor(0.5), torch.tensor(0.0)
    >>> fake_quantize(x, scale, zero_point, quant_min=-2, quant_max=1).tolist()
    [0.5, -1.0]
    """
    return _FakeQuantize.apply(_at_least_float32(x), scale, zero_point, quant_min, quant_max, masks_gradient).to(
        x.dtype
    )


def fake_quantize_learned(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, quant_min: int, quant_max: int, num_values: int
) -> Tensor:
    """Fake-quantize with gradients for ``x``, scale and zero point: LSQ, Esser et al. 2020 (arXiv:1902.08153).

    With a zero point LSQ+, Bhalgat et al. 2020 (arXiv:2004.09576). The gradients of scale and zero point are multiplied
    by ``1 / sqrt(num_values * quant_max)``.

    Args:
        x: Tensor of any shape.
        scale: As in :func:`fake_quantize`.
        zero_point: As in :func:`fake_quantize`; rounded and clamped to ``[quant_min, quant_max]``.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        num_values: Number of values that share a scale: weights, or features of one sample. Not of a batch, which
            gradient accumulation and ranks may split in any way.

    >>> scale = torch.tensor(0.5, requires_grad=True)
    >>> x = torch.tensor([0.26, -3.0])
    >>> fake_quantize_learned(x, scale, torch.tensor(0.0), quant_min=-2, quant_max=1, num_values=2).sum().backward()
    >>> scale.grad
    tensor(-1.0748)
    """
    # Without the factor the gradient of the scale grows with the number of values and of levels, and its relative
    # updates would dwarf those of the weights at the same learning rate (section 2.2 of LSQ).
    factor = (num_values * max(quant_max, 1)) ** -0.5
    return _LearnedFakeQuantize.apply(_at_least_float32(x), scale, zero_point, quant_min, quant_max, factor).to(x.dtype)


def round_zero_point(zero_point: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """Round and clamp an averaged or learned zero point to a representable integer, so that 0.0 stays exact.

    >>> round_zero_point(torch.tensor([2.6, -0.7]), quant_min=0, quant_max=15).tolist()
    [3.0, 0.0]
    """
    return torch.round(zero_point).clamp(quant_min, quant_max)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """Return the integers that represent ``x``, as int32; arguments as in :func:`fake_quantize`.

    >>> x, scale, zero_point = torch.tensor([0.26, -3.0]), torch.tensor(0.5), torch.tensor(128.0)
    >>> quantize(x, scale, zero_point, quant_min=0, quant_max=255).tolist()
    [129, 122]
    """
    return (torch.round(_at_least_float32(x) / scale) + zero_point).clamp(quant_min, quant_max).to(torch.int32)


def qparams_from_range(
    lowest: Tensor, highest: Tensor, *, quant_min: int, quant_max: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Return scale and zero point that cover ``[lowest, highest]`` and represent 0.0 exactly.

    A scale is at least 1e-4 of the largest one along the last dimension, and never zero: constant tensors and empty
    channels stay finite, and so do INT32 biases.

    Args:
        lowest: Smallest values, any shape.
        highest: Largest values, of the same shape.
        quant_min: Smallest integer.
        quant_max: Largest integer.
        symmetric: If True, the zero point is 0; ``quant_min`` is then expected to be ``-quant_max``.

    Returns:
        Scale and zero point, floating-point tensors of the shape of ``lowest``.

    >>> qparams_from_range(torch.tensor(-1.0), torch.tensor(3.0), quant_min=0, quant_max=255, symmetric=False)
    (tensor(0.0157), tensor(64.))
    """
    # The range always includes 0.0: zero padding, ReLU outputs and pruned weights must not be shifted.
    lowest, highest = lowest.clamp(max=0), highest.clamp(min=0)
    step = torch.maximum(-lowest, highest) / quant_max if symmetric else (highest - lowest) / (quant_max - quant_min)
    # A bias is quantized with the product of input and weight scale: a channel of nearly zero scale would overflow
    # INT32 there. The absolute floor is for tensors that are tiny as a whole.
    largest = step.amax(dim=-1, keepdim=True) if step.ndim and step.numel() else step
    scale = step.clamp(min=MIN_SCALE).maximum(largest * 1e-4)
    # A tensor of zeros has no range and any scale represents it.
    scale = torch.where(largest > 0, scale, torch.ones_like(scale) / quant_max)
    if symmetric:
        return scale, torch.zeros_like(scale)
    return scale, torch.round(quant_min - lowest / scale).clamp(quant_min, quant_max)


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    # For a scalar scale a dot product avoids the elementwise product in memory.
    return torch.dot(a.flatten(), b.flatten()) if not like.ndim else _sum_to(a * b, like)


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    return values.sum_to_size(like.shape) if like.ndim else values.sum()
