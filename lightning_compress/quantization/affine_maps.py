"""Affine maps of each channel that are folded into the layer before them: batch norms, also those written by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_compress.quantization.tracing import Node

_NUMBERS = (int, float)


def is_foldable(layer: Node, reader: Node, value: int) -> bool:
    """Return True if a call is an affine map of each output channel of a layer, with constants only.

    Args:
        layer: Call with a weight.
        reader: Call that reads ``value``.
        value: Output of the layer, perhaps behind other affine maps.
    """
    if reader.arguments is None or layer.arguments is None or _shares_scales(layer):
        return False
    if reader.call.function == "batch_norm":
        args, kwargs = reader.arguments
        statistics = [argument(args, kwargs, i, name) for i, name in ((1, "running_mean"), (2, "running_var"))]
        # Statistics of the batch are no constants; but a module that was in training mode will have running ones.
        uses_batch = argument(args, kwargs, 5, "training") and not reader.in_training
        return reader.operands[0] == value and None not in statistics and not uses_batch
    constant = _constant(reader)
    if isinstance(constant, Tensor):
        shape = reader.shapes[reader.operands.index(value)]
        return _is_per_channel(constant.shape, shape, _channel_dimension(layer.call.function, len(shape)))
    return constant is not None


def as_factor(node: Node) -> tuple[Tensor, Tensor]:
    """Return an affine map as factor and shift, float64, each of all channels or ``(channels,)``."""
    assert node.arguments is not None
    if node.call.function == "batch_norm":
        return _factor_of_norm(*node.arguments)
    constant = torch.as_tensor(_constant(node), dtype=torch.float64).detach().flatten()
    zero, one = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    match node.call.function:
        case "add":
            return one, constant
        case "sub":
            return one, -constant
        case "mul":
            return constant, zero
        case _:
            return 1 / constant, zero


def argument(args: Any, kwargs: Any, index: int, name: str) -> Any:
    """Return an argument of a call, given by position or by keyword."""
    return args[index] if len(args) > index else kwargs.get(name)


def shares_scales(function: str, args: Any, kwargs: Any) -> bool:
    """Return True if channels of several groups share a scale, as in a grouped transposed convolution.

    Its weight is ``(in, out / groups, ...)``: there is no dimension for the factor that a batch norm has for each
    output channel.
    """
    return function.startswith("conv_transpose") and (argument(args, kwargs, 6, "groups") or 1) > 1


def position_of_data(node: Node) -> int:
    """Return the position of the activation among the arguments of an affine map."""
    assert node.arguments is not None
    return 0 if node.arguments[0][0] is None else 1


def _shares_scales(layer: Node) -> bool:
    assert layer.arguments is not None
    return shares_scales(layer.call.function, *layer.arguments)


def _constant(node: Node) -> Tensor | float | None:
    """Return the constant of a sum, product or quotient with one activation; ``None`` if there is no such form."""
    assert node.arguments is not None
    args, kwargs = node.arguments
    if len(args) != 2 or kwargs.keys() - {"alpha"}:
        return None
    first, second = args
    if first is None and isinstance(second, (Tensor, *_NUMBERS)):
        return second
    is_commutative = node.call.function in ("add", "mul")
    return first if is_commutative and second is None and isinstance(first, Tensor) else None


def _channel_dimension(function: str, num_dims: int) -> int:
    return num_dims - 1 if function == "linear" else num_dims - 1 - int(function[-2])


def _is_per_channel(constant: torch.Size, shape: torch.Size, channels: int) -> bool:
    """Return True if a constant has at most one value for each channel of a tensor that it is broadcast to."""
    first = len(shape) - len(constant)
    return first >= 0 and all(
        size == 1 or (dim == channels and size == shape[dim]) for dim, size in enumerate(constant, first)
    )


def _factor_of_norm(args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    mean, var = (argument(args, kwargs, i, n).double() for i, n in ((1, "running_mean"), (2, "running_var")))
    gamma, beta = (argument(args, kwargs, i, n) for i, n in ((3, "weight"), (4, "bias")))
    eps = argument(args, kwargs, 7, "eps")
    factor = torch.rsqrt(var + (1e-5 if eps is None else eps))
    factor = factor if gamma is None else factor * gamma.detach().double()
    shift = -mean * factor
    return factor, shift if beta is None else shift + beta.detach().double()
