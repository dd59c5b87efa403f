"""Rounding to integers within bounds, and its gradients; operators of their own in compiled code for CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def round_zero_point(zero_point: Tensor, *, quant_min: int, quant_max: int) -> Tensor:
    """Round and clamp an averaged or learned zero point to a representable integer, so that 0.0 stays exact.

    >>> round_zero_point(torch.tensor([2.6, -0.7]), quant_min=0, quant_max=15).tolist()
    [3.0, 0.0]
    """
    return torch.round(zero_point).clamp(quant_min, quant_max)


def round_and_clip(x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Return ``clamp(round(x / scale), quant_min - z, quant_max - z) * scale`` for an integer zero point ``z``.

    The zero point shifts the bounds instead of the rounded values: equal to adding and subtracting it, as it is an
    integer, but two passes over ``x`` fewer.
    """
    if is_opaque(scale):
        return torch.ops.lightning_compress.round_and_clip.default(x, scale, zero_point, quant_min, quant_max)
    step, lower, upper = _bounds(scale, zero_point, quant_min, quant_max)
    if isinstance(step, float):
        # Rounding, clamping and scaling share one allocation.
        return (x * (1 / step)).round_().clamp_(lower, upper).mul_(step)
    return torch.minimum(torch.maximum(torch.round(x / step), lower), upper) * step


def mask_clipped(grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """Zero the gradient where ``x`` was clipped."""
    if is_opaque(scale):
        return torch.ops.lightning_compress.mask_clipped.default(grad, x, scale, zero_point, quant_min, quant_max)
    step, lower, upper = _bounds(scale, zero_point, quant_min, quant_max)
    # Values within half a step of the outermost level are rounded to it, not clipped.
    lowest, highest = (lower - 0.5) * step, (upper + 0.5) * step
    if isinstance(step, float):
        # The derivative of hardtanh is 1 inside the bounds and 0 outside: no mask of bools is made.
        return torch.ops.aten.hardtanh_backward(grad, x, lowest, highest)
    return grad * ((x > lowest) & (x < highest))  # the bounds are left out, as hardtanh does


def pass_gradient(grad: Tensor, x: Tensor, scale: Tensor) -> Tensor:
    """Return the gradient as it is, for values that were clipped as well."""
    return torch.ops.lightning_compress.pass_gradient.default(grad, x) if is_opaque(scale) else grad


def learned_gradients(
    grad: Tensor, x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of ``x``, scale and zero point of :func:`round_and_clip` with a rounded zero point."""
    if is_opaque(scale):
        return torch.ops.lightning_compress.learned_gradients.default(grad, x, scale, zero_point, quant_min, quant_max)
    qparams = scale, round_zero_point(zero_point, quant_min=quant_min, quant_max=quant_max), quant_min, quant_max
    # Computed again instead of saved: the caller may have modified the returned tensor in place.
    y = round_and_clip(x, *qparams)
    passed = mask_clipped(grad, x, *qparams)
    clipped = grad - passed
    # With a straight-through estimator for round, dy/dscale is round(x / scale) - x / scale = (y - x) / scale inside
    # the range, and the bound itself, y / scale, where x is clipped.
    to_scale = (_sum_of_products(passed, y - x, scale) + _sum_of_products(clipped, y, scale)) / scale
    # The zero point cancels inside the range; where x is clipped it moves the bound: dy/dzero_point = -scale.
    to_zero = -scale * _sum_to(clipped, zero_point)
    # The forward pass clamps the zero point to [quant_min, quant_max]. Beyond, only the gradient that leads back is
    # kept: zeroing both directions would leave it stuck there.
    rounded = torch.round(zero_point)
    outwards = ((rounded < quant_min) & (to_zero > 0)) | ((rounded > quant_max) & (to_zero < 0))
    return passed, to_scale, to_zero.masked_fill(outwards, 0.0)


def is_opaque(scale: Tensor) -> bool:
    """Return True if the functions of this module are operators that the compiler cannot look into.

    Its code for CPU saves masks of bools for the backward pass and writes them one by one: a batch norm with its ReLU
    took 23 ms instead of 3. Operators make it save the activations instead.
    """
    return _is_number(scale) and torch.compiler.is_compiling() and not torch.compiler.is_exporting()


def _is_number(scale: Tensor) -> bool:
    return scale.numel() == 1 and scale.device.type == "cpu"


def _bounds(scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int) -> tuple[Any, Any, Any]:
    """Return the scale and the bounds of the integers without zero point: numbers for a scalar on the CPU.

    On CUDA ``item()`` would synchronize, and in a captured graph it depends on data.
    """
    if _is_number(scale) and not torch.compiler.is_compiling():
        step, offset = scale.item(), zero_point.item()
        return step, quant_min - offset, quant_max - offset
    return scale, quant_min - zero_point, quant_max - zero_point


def _sum_of_products(a: Tensor, b: Tensor, like: Tensor) -> Tensor:
    if like.ndim:
        return _sum_to(a * b, like)
    # For a scalar scale a dot product avoids the elementwise product in memory; it takes vectors, which are views of
    # tensors in the order of their memory, as of images with channels last.
    order = sorted(range(a.ndim), key=lambda dim: a.stride()[dim], reverse=True)
    return torch.dot(a.permute(order).flatten(), b.permute(order).flatten())


def _sum_to(values: Tensor, like: Tensor) -> Tensor:
    return values.sum_to_size(like.shape) if like.ndim else values.sum()


def _laid_out(result: Tensor, like: Tensor) -> Tensor:
    """Return a result with the strides that the compiler expects."""
    return result if result.stride() == like.stride() else torch.empty_like(like).copy_(result)


def _round_and_clip(x: Tensor, *qparams: Any) -> Tensor:
    return _laid_out(round_and_clip(x, *qparams), x)


def _mask_clipped(grad: Tensor, x: Tensor, *qparams: Any) -> Tensor:
    return _laid_out(mask_clipped(grad, x, *qparams), x)


def _pass_gradient(grad: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x).copy_(grad)


def _learned_gradients(grad: Tensor, x: Tensor, *qparams: Any) -> tuple[Tensor, ...]:
    passed, *others = learned_gradients(grad, x, *qparams)
    return _laid_out(passed, x), *others


_LIBRARY = torch.library.Library("lightning_compress", "FRAGMENT")
_QPARAMS = "Tensor scale, Tensor zero_point, int quant_min, int quant_max"


def _register(schema: str, function: Callable[..., Any], shapes: Callable[..., Any]) -> None:
    # Of any layout, so that the compiler copies no tensor to another one.
    _LIBRARY.define(schema, tags=torch.Tag.flexible_layout)
    name = schema.partition("(")[0]
    _LIBRARY.impl(name, function, "CPU")
    torch.library.register_fake(f"lightning_compress::{name}", shapes, lib=_LIBRARY)


_register(f"round_and_clip(Tensor x, {_QPARAMS}) -> Tensor", _round_and_clip, lambda x, *_: torch.empty_like(x))
_register(
    f"mask_clipped(Tensor grad, Tensor x, {_QPARAMS}) -> Tensor", _mask_clipped, lambda grad, x, *_: torch.empty_like(x)
)
_register("pass_gradient(Tensor grad, Tensor x) -> Tensor", _pass_gradient, lambda grad, x: torch.empty_like(x))
_register(
    f"learned_gradients(Tensor grad, Tensor x, {_QPARAMS}) -> (Tensor, Tensor, Tensor)",
    _learned_gradients,
    lambda grad, x, scale, zero_point, *_: tuple(map(torch.empty_like, (x, scale, zero_point))),
)
