"""Folding of batch norms and biases into INT8 weights and INT32 biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import call_model
from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.backend import Bias, QParams, Weight
from lightning_compress.quantization.call_patcher import CallPatcher, CallSite, install_all
from lightning_compress.quantization.placement import CHANNEL_AXIS
from lightning_compress.quantization.tracing import Graph, Node

# Largest integer of a bias: the accumulator that it is added to is int32, and half of its range is left to the sum of
# products.
_MAX_BIAS = 2**30


def fold(
    name: str, integers: Tensor, scale: Tensor, axis: int, *, bias: Tensor | None, input_scale: float | None
) -> Weight:
    """Fold the sign of a signed scale into the integers of a weight, and keep the bias within int32.

    Args:
        name: Layer name.
        integers: Integers of the weight.
        scale: Scale of each channel times the factor of the batch norm, float64; may be negative or zero.
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
    return Weight(name, folded, raised.float(), axis, torch.zeros(len(raised), dtype=torch.int64))


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


def is_foldable(args: Any, kwargs: Any) -> bool:
    """Return True if a batch norm uses running statistics, not those of the batch."""
    statistics = all(argument(args, kwargs, i, n) is not None for i, n in ((1, "running_mean"), (2, "running_var")))
    return statistics and not argument(args, kwargs, 5, "training")


def shares_scales(function: str, args: Any, kwargs: Any) -> bool:
    """Return True if channels of several groups share a scale, as in a grouped transposed convolution.

    Its weight is ``(in, out / groups, ...)``: there is no dimension for the factor that a batch norm has for each
    output channel.
    """
    return function.startswith("conv_transpose") and (argument(args, kwargs, 6, "groups") or 1) > 1


def as_factor(args: Any, kwargs: Any) -> tuple[Tensor, Tensor]:
    """Return a batch norm in eval mode as factor and shift of each channel, float64."""
    mean, var = (argument(args, kwargs, i, n).double() for i, n in ((1, "running_mean"), (2, "running_var")))
    gamma, beta = (argument(args, kwargs, i, n) for i, n in ((3, "weight"), (4, "bias")))
    eps = argument(args, kwargs, 7, "eps")
    factor = torch.rsqrt(var + (1e-5 if eps is None else eps))
    factor = factor if gamma is None else factor * gamma.detach().double()
    shift = -mean * factor
    return factor, shift if beta is None else shift + beta.detach().double()


def argument(args: Any, kwargs: Any, index: int, name: str) -> Any:
    """Return an argument of a call, given by position or by keyword."""
    return args[index] if len(args) > index else kwargs.get(name)


class _ArgumentRecorder:
    """Action that records the arguments of a call."""

    def __init__(self, recorded: dict[Node, tuple[Any, Any]], node: Node) -> None:
        self.recorded = recorded
        self.node = node

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.recorded[self.node] = (None, *args[1:]), kwargs
        return function(*args, **kwargs)


def arguments_of(model: nn.Module, graph: Graph, example_inputs: Any) -> dict[Node, tuple[Any, Any]]:
    """Record the arguments of layers and batch norms in one run; the activation is replaced by ``None``."""
    recorded: dict[Node, tuple[Any, Any]] = {}
    table: dict[str, dict[CallSite, Any]] = {}
    for node in graph.nodes:
        if node.call.function in CHANNEL_AXIS or node.call.function == "batch_norm":
            table.setdefault(node.module, {})[node.call] = _ArgumentRecorder(recorded, node)
    patched = copy_module(model)
    install_all(patched, {name: CallPatcher(actions) for name, actions in table.items()})
    with torch.no_grad():
        call_model(patched, example_inputs)
    return recorded
