"""Weights of quantization-aware training as integers times a scale that is in the same file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_compress.packing.bit_patterns import dtype_name

_MAX_INTEGER = 1023  # 8 bits on either side of a zero point at the end of the range, and room to spare
_PER_GROUP = 2  # axis of scales of groups in the second dimension
_PER_TENSOR = -1  # axis of a single scale


@dataclass(frozen=True)
class IntegerTensor:
    """Integers of a quantized tensor.

    Attributes:
        values: Integers, flat, int16.
        axis: Dimension of the scales; -1 for a single scale, 2 for scales of groups.
        negative_zero: Integer that stands for -0.0, or ``None`` if there is no -0.0.
    """

    values: NDArray[Any]
    axis: int
    negative_zero: int | None


def scale_name(name: str) -> str:
    """Return the name of the scale of a tensor's quantizer.

    >>> scale_name("net.conv.weight")
    'net.conv.quant_weight_scale'
    """
    parent, dot, leaf = name.rpartition(".")
    return f"{parent}{dot}quant_{leaf}_scale"


def find_integers(tensor: Tensor, scale: Tensor) -> IntegerTensor | None:
    """Return the integers that reproduce a tensor bit by bit when multiplied by its scale, if they exist.

    Args:
        tensor: Tensor of any shape.
        scale: Scale as the quantizer stores it: of shape ``()``, ``(channels,)`` or ``(channels, groups)``.
    """
    if not _is_converted(tensor.dtype) or not tensor.numel() or scale.dtype != torch.float32:
        return None
    for axis in _possible_axes(tensor.shape, scale.shape):
        steps = _broadcast_scale(scale, tensor.shape, axis)
        integers = torch.round(_grouped(tensor, scale, axis).float() / steps)
        # Written as "all below" because a scale of zero gives NaN, which compares as false.
        in_range = bool((integers.abs() <= _MAX_INTEGER).all())
        # The division may round, so the product is compared instead of trusted.
        if in_range and _same_bits(_dequantize(integers, steps, tensor), tensor):
            return _to_integer_tensor(integers, axis)
    return None


def from_integers(integers: IntegerTensor, scale: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """Return the tensor from which :func:`find_integers` made the integers.

    Raises:
        ValueError: If the shape or dtype of the scale does not fit the tensor, or if there is no scale for its dtype.
    """
    if not _is_converted(dtype):
        raise ValueError(f"a tensor of dtype {dtype} has no scale")
    if integers.axis not in _possible_axes(shape, scale.shape) or scale.dtype != torch.float32:
        raise ValueError(f"a scale of shape {tuple(scale.shape)} and dtype {scale.dtype} does not fit the tensor")
    values = torch.from_numpy(integers.values.astype(np.float32))
    if integers.negative_zero is not None:
        values[torch.from_numpy(integers.values == integers.negative_zero)] = -0.0
    values = values.reshape(_grouped(torch.empty(shape, device="meta"), scale, integers.axis).shape)
    like = torch.empty(shape, dtype=dtype, device="meta")
    return _dequantize(values, _broadcast_scale(scale, shape, integers.axis), like)


def _is_converted(dtype: torch.dtype) -> bool:
    # PyTorch does not convert the elements that are pairs of 4-bit numbers.
    return dtype.is_floating_point and not dtype_name(dtype).startswith("float4")


def _dequantize(integers: Tensor, steps: Tensor, like: Tensor) -> Tensor:
    # The operations of a quantizer in their order: multiplied in float32, then rounded to the dtype of the weight.
    return (integers * steps).to(like.dtype).reshape(like.shape)


def _possible_axes(shape: torch.Size, scale_shape: torch.Size) -> list[int]:
    if len(scale_shape) == 0:
        return [_PER_TENSOR]
    # Output channels are in the second dimension of transposed convolutions; square weights fit both.
    if len(scale_shape) == 1:
        return [axis for axis in range(min(len(shape), 2)) if shape[axis] == scale_shape[0]]
    fits = len(scale_shape) == 2 and len(shape) == 2 and shape[0] == scale_shape[0] and scale_shape[1] > 0
    return [_PER_GROUP] if fits and shape[1] % scale_shape[1] == 0 else []


def _grouped(tensor: Tensor, scale: Tensor, axis: int) -> Tensor:
    return tensor.unflatten(1, (scale.shape[1], -1)) if axis == _PER_GROUP else tensor


def _broadcast_scale(scale: Tensor, shape: torch.Size, axis: int) -> Tensor:
    # Learned scales may become negative; quantizers apply their absolute value.
    positive = scale.detach().cpu().abs()
    if axis == _PER_GROUP:
        return positive.unsqueeze(2)
    return positive.reshape([-1 if dim == axis else 1 for dim in range(len(shape))])


def _same_bits(a: Tensor, b: Tensor) -> bool:
    # Numbers are equal although their bits differ for zeros of both signs.
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _to_integer_tensor(integers: Tensor, axis: int) -> IntegerTensor:
    values = integers.to(torch.int16).reshape(-1).numpy()
    # Small negative weights round to -0.0, which integers do not have: one more integer stands for it.
    negative_zeros = ((integers == 0) & integers.signbit()).reshape(-1).numpy()
    if not negative_zeros.any():
        return IntegerTensor(values, axis, None)
    negative_zero = int(values.max()) + 1
    values[negative_zeros] = negative_zero
    return IntegerTensor(values, axis, negative_zero)
