"""Weights that are whole numbers times a scale of the same file, as quantization-aware training leaves them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_LARGEST = 1023  # 8 bits around a zero point, and room
_GROUPS = 2  # for an axis: scales of groups in the second dimension
_WHOLE = -1  # one scale


@dataclass(frozen=True)
class IntegerTensor:
    """A tensor as whole numbers.

    Attributes:
        values: The numbers, flat, int16.
        axis: Dimension of the scales; -1 for one scale, 2 for scales of groups.
        minus: The number that stands for -0.0, or none.
    """

    values: NDArray[Any]
    axis: int
    minus: int | None


def scale_name(name: str) -> str:
    """The name beside a tensor's of the scale that its quantizer has.

    >>> scale_name("net.conv.weight")
    'net.conv.quant_weight_scale'
    """
    parent, dot, leaf = name.rpartition(".")
    return f"{parent}{dot}quant_{leaf}_scale"


def find_integers(tensor: Tensor, scale: Tensor) -> IntegerTensor | None:
    """The numbers that times the scale are the tensor, bit by bit, if there are any.

    Args:
        tensor: Floating, of any shape.
        scale: As a quantizer keeps it: one number, one for each channel, or one for each group of a row.
    """
    if not tensor.is_floating_point() or not tensor.numel() or scale.dtype != torch.float32:
        return None
    for axis in _axes(tensor.shape, scale.shape):
        steps = _against(scale, tensor.shape, axis)
        numbers = torch.round(_grouped(tensor, scale, axis).float() / steps)
        # NaN, which a scale of zero gives, is not below.
        if bool((numbers.abs() <= _LARGEST).all()) and _same_bits(_product(numbers, steps, tensor), tensor):
            return _as_integers(numbers, axis)
    return None


def from_integers(integers: IntegerTensor, scale: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    """The tensor again.

    Raises:
        ValueError: If the scale does not fit.
    """
    if integers.axis not in list(_axes(shape, scale.shape)) or scale.dtype != torch.float32:
        raise ValueError(f"a scale of shape {tuple(scale.shape)} does not fit")
    numbers = torch.from_numpy(integers.values.astype(np.float32))
    if integers.minus is not None:
        numbers[torch.from_numpy(integers.values == integers.minus)] = -0.0
    numbers = numbers.reshape(_grouped(torch.empty(shape, device="meta"), scale, integers.axis).shape)
    return _product(numbers, _against(scale, shape, integers.axis), torch.empty(shape, dtype=dtype, device="meta"))


def _product(numbers: Tensor, steps: Tensor, like: Tensor) -> Tensor:
    """What a quantizer computes, in the order in which it does."""
    return (numbers * steps).to(like.dtype).reshape(like.shape)


def _axes(shape: torch.Size, of_scale: torch.Size) -> list[int]:
    if len(of_scale) == 0:
        return [_WHOLE]
    if len(of_scale) == 1:
        return [axis for axis in range(min(len(shape), 2)) if shape[axis] == of_scale[0]]
    fits = len(of_scale) == 2 and len(shape) == 2 and shape[0] == of_scale[0] and of_scale[1] > 0
    return [_GROUPS] if fits and shape[1] % of_scale[1] == 0 else []


def _grouped(tensor: Tensor, scale: Tensor, axis: int) -> Tensor:
    return tensor.unflatten(1, (scale.shape[1], -1)) if axis == _GROUPS else tensor


def _against(scale: Tensor, shape: torch.Size, axis: int) -> Tensor:
    # Learned scales may be negative, and are applied without their sign.
    positive = scale.detach().cpu().abs()
    if axis == _GROUPS:
        return positive.unsqueeze(2)
    return positive.reshape([-1 if dim == axis else 1 for dim in range(len(shape))])


def _same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in (a, b)))


def _as_integers(numbers: Tensor, axis: int) -> IntegerTensor:
    values = numbers.to(torch.int16).reshape(-1).numpy()
    negative = ((numbers == 0) & numbers.signbit()).reshape(-1).numpy()
    if not negative.any():
        return IntegerTensor(values, axis, None)
    minus = int(values.max()) + 1
    values[negative] = minus
    return IntegerTensor(values, axis, minus)
