"""Folding of affine maps and biases into INT8 weights and INT32 biases."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_compress.quantization.backend_operators import Bias, QParams, Weight

# Largest integer of a bias: the accumulator that it is added to is int32, and half of its range is left to the sum of
# products.
_MAX_BIAS = 2**30


def fold_weight_only(name: str, integers: Tensor, scale: Tensor, axis: int, *, bits: int) -> Weight:
    """Fold the signs of scales into the integers of a weight that is dequantized before use.

    Args:
        name: Layer name.
        integers: Integers of the weight.
        scale: Scale of each channel, or of each of its groups, times the factor of the affine maps, float64.
        axis: Channel dimension of the weight.
        bits: Bit width of the integers.
    """
    sign = torch.sign(scale)
    if scale.ndim == 2:
        signs = sign.repeat_interleave(integers.shape[1] // scale.shape[1], dim=1)
    else:
        signs = sign.view([-1 if dim == axis else 1 for dim in range(integers.ndim)])
    return Weight.of(name, (integers * signs).to(torch.int8), scale.abs().float(), axis, bits=bits, is_weight_only=True)


def fold(
    name: str, integers: Tensor, scale: Tensor, axis: int, *, bias: Tensor | None, input_scale: float | None
) -> Weight:
    """Fold the sign of a signed scale into the integers of a weight, and keep the bias within int32.

    Args:
        name: Layer name.
        integers: Integers of the weight.
        scale: Scale of each channel times the factor of the affine maps, float64; may be negative or zero.
        axis: Channel dimension of the weight.
        bias: Folded bias, if there is one.
        input_scale: Scale of the input, if the bias is to be quantized.
    """
    shape = [-1 if dim == axis else 1 for dim in range(integers.ndim)]
    positive = scale.abs()
    # A channel with gamma = 0 has scale 0, which no kernel supports: it gets a small scale, and its integers become 0.
    floor = positive.max() * 1e-7 if float(positive.max()) > 0 else torch.ones((), dtype=torch.float64)
    raised = positive.maximum(floor)
    # A tiny gamma makes a tiny scale, with which the INT32 bias would overflow. A larger scale has room for the bias;
    # the integers of the weight shrink in return, and are negligible next to it.
    if bias is not None and input_scale:
        raised = raised.maximum(bias.detach().double().abs() / (input_scale * _MAX_BIAS))
    # Kernels need positive scales, and symmetric integers have a negative for each: the sign of gamma moves into them.
    signed = integers.double() * torch.sign(scale).view(shape)
    folded = torch.round(signed * (positive / raised).view(shape)).to(torch.int8)
    return Weight.of(name, folded, raised.float(), axis)


def quantize_bias(weight: Weight, bias: Tensor | None, qparams: QParams | None) -> Bias | Tensor | None:
    """Quantize a folded bias to INT32; with an FP32 input (``qparams=None``) it stays FP32."""
    if bias is None:
        return None
    exact = bias.detach().double()
    if qparams is None:
        return exact.float()
    # The bias is added to sums of products of integers, each of which stands for the product of both scales.
    scale = weight.scale.double() * qparams.scale
    integers = torch.round(exact / scale).to(torch.int32)
    return Bias(weight.name, integers, scale.float(), (integers * scale).float())
