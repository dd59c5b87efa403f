"""Folding a batch norm and a bias into a weight of integers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.quantization.backend import Bias, QParams, Weight
from lightning_compress.quantization.calibrate import call
from lightning_compress.quantization.call_patcher import CallPatcher, CallSite, install_all
from lightning_compress.quantization.placement import CHANNEL_AXIS
from lightning_compress.quantization.tracing import Graph, Node

_MAX_BIAS = 2**30  # of the integers of a bias, so that sums with it stay below 2**31


def fold(
    name: str, integers: Tensor, scale: Tensor, axis: int, *, bias: Tensor | None, input_scale: float | None
) -> Weight:
    """Integers and positive scales of a folded weight.

    A scale so small that the integer bias would overflow, as a tiny gamma makes it, is raised; the integers shrink.
    """
    sides = [-1 if dim == axis else 1 for dim in range(integers.ndim)]
    positive = scale.abs()
    least = positive.max() * 1e-7 if float(positive.max()) > 0 else torch.ones((), dtype=torch.float64)
    enough = positive.maximum(least)
    if bias is not None and input_scale:
        enough = enough.maximum(bias.detach().double().abs() / (input_scale * _MAX_BIAS))
    signed = integers.double() * torch.sign(scale).view(sides)
    shrunk = torch.round(signed * (positive / enough).view(sides)).to(torch.int8)
    return Weight(name, shrunk, enough.float(), axis, torch.zeros(len(enough), dtype=torch.int64))


def integer_bias(weight: Weight, bias: Tensor | None, grid: QParams | None) -> Bias | Tensor | None:
    """Integers of a folded bias, or floats behind a float input."""
    if bias is None:
        return None
    exact = bias.detach().double()
    if grid is None:
        return exact.float()
    scale = weight.scale.double() * grid.scale
    integers = torch.round(exact / scale).to(torch.int32)
    return Bias(weight.name, integers, scale.float(), (integers * scale).float())


def is_foldable(args: Any, kwargs: Any) -> bool:
    """Whether a batch norm computes with statistics that are statistics, not with those of each batch."""
    statistics = all(argument(args, kwargs, i, n) is not None for i, n in ((1, "running_mean"), (2, "running_var")))
    return statistics and not argument(args, kwargs, 5, "training")


def shares_scales(function: str, args: Any, kwargs: Any) -> bool:
    """Whether channels of several groups share a scale, as a transposed convolution's weight has those of one group.

    A norm would give each channel its own, for which its weight has no dimension.
    """
    return function.startswith("conv_transpose") and (argument(args, kwargs, 6, "groups") or 1) > 1


def as_factor(args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """A batch norm in eval mode as a factor and a shift, float64."""
    mean, var = (argument(args, kwargs, i, n).double() for i, n in ((1, "running_mean"), (2, "running_var")))
    gamma, beta = (argument(args, kwargs, i, n) for i, n in ((3, "weight"), (4, "bias")))
    eps = argument(args, kwargs, 7, "eps")
    factor = torch.rsqrt(var + (1e-5 if eps is None else eps))
    factor = factor if gamma is None else factor * gamma.detach().double()
    shift = -mean * factor
    return factor, shift if beta is None else shift + beta.detach().double()


def argument(args: Any, kwargs: Any, index: int, name: str) -> Any:
    """An argument of a call, however it was given."""
    return args[index] if len(args) > index else kwargs.get(name)


class _Collecting:
    """Keeps the arguments of a call."""

    def __init__(self, kept: dict[Node, tuple[Any, Any]], node: Node) -> None:
        self.kept = kept
        self.node = node

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.kept[self.node] = (None, *args[1:]), kwargs
        return function(*args, **kwargs)


def arguments_of(model: nn.Module, graph: Graph, example_inputs: Any) -> dict[Node, tuple[Any, Any]]:
    """What layers and norms are called with, but for the activation."""
    kept: dict[Node, tuple[Any, Any]] = {}
    table: dict[str, dict[CallSite, Any]] = {}
    for node in graph.nodes:
        if node.call.function in CHANNEL_AXIS or node.call.function == "batch_norm":
            table.setdefault(node.module, {})[node.call] = _Collecting(kept, node)
    probe = copy.deepcopy(model)
    install_all(probe, {name: CallPatcher(actions) for name, actions in table.items()})
    with torch.no_grad():
        call(probe, example_inputs)
    return kept
