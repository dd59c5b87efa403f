"""Linear layers with 2:4 sparse weights on the sparse tensor cores of NVIDIA GPUs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor

from lightning_compress.arguments import call_model, reason
from lightning_compress.functional.masks import is_n_of_m
from lightning_compress.profiling import compare_latencies

# torch has INT8 kernels as well, but no dense linear layer of INT8 weights to compare them with.
_DTYPES = (torch.float16, torch.bfloat16)
_NUM_ROUNDS = 30
# Within a model the host runs ahead of the device: calls in a row hide the cost of launching a kernel as it does,
# unless kernels are shorter than that.
_CALLS_PER_ROUND = 10


@dataclass(frozen=True)
class LayerInput:
    """Form of a tensor that a linear layer is called with.

    Attributes:
        shape: Shape, ``(..., in_features)``.
        stride: Stride of each dimension, in elements.
        dtype: Dtype.
    """

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def random(self, device: torch.device) -> Tensor:
        """Return a tensor of this form with normally distributed values."""
        size = 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return torch.randn(size, dtype=self.dtype, device=device).as_strided(self.shape, self.stride)


def use_semi_structured_(model: nn.Module, example_inputs: Any) -> dict[str, str]:
    """Store 2:4 sparse weights of linear layers as semi-structured tensors where their kernel is faster.

    Mishra et al. 2021 (arXiv:2104.08378). A layer is changed only if ``torch.sparse.to_sparse_semi_structured`` takes
    its weight, the outputs agree, and the median time of the sparse kernel on inputs of the example's shapes is lower
    than that of the dense one, both measured in turns on the device.

    Args:
        model: Model in eval mode on a CUDA device; its linear layers are modified.
        example_inputs: Inputs of the model on its device: a tensor, a tuple, or a dict of keyword arguments.

    Returns:
        For each linear layer that stays dense, by name, the reason.

    Raises:
        ValueError: If no linear layer has a 2:4 sparse weight.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    if not any(_is_two_of_four(layer) for layer in layers.values()):
        raise ValueError(
            "finalize(semi_structured=True): no linear layer has a 2:4 sparse weight: train with "
            "lc.Pruning(0.5, pattern=lc.NM(2, 4)), or leave semi_structured out."
        )
    dense = {name: obstacle for name, layer in layers.items() if (obstacle := find_obstacle(layer))}
    candidates = {name: layer for name, layer in layers.items() if name not in dense}
    inputs = record_inputs(model, candidates, example_inputs)
    for name, layer in candidates.items():
        obstacle = convert_linear_(layer, inputs[name]) if inputs[name] else "is not called with the example inputs"
        if obstacle:
            dense[name] = obstacle
    return {name: dense[name] for name in layers if name in dense}


def find_obstacle(layer: nn.Linear) -> str:
    """Return the reason for which a weight cannot be a semi-structured tensor, or ``""`` if there is none.

    >>> find_obstacle(nn.Linear(64, 32))
    'has a weight that is not 2:4 sparse: prune it with lc.NM(2, 4)'
    """
    if "weight" not in layer._parameters or type(layer).forward is not nn.Linear.forward:
        return "does not compute as nn.Linear with a weight of its own"
    if not _is_two_of_four(layer):
        return "has a weight that is not 2:4 sparse: prune it with lc.NM(2, 4)"
    weight = layer.weight
    limits = _backend()._DTYPE_SHAPE_CONSTRAINTS.get(weight.dtype)
    if weight.dtype not in _DTYPES or limits is None:
        return f"has a weight of {weight.dtype}: convert the model with model.half() or model.bfloat16()"
    rows, columns = limits.sparse_min_rows, limits.sparse_min_cols
    if layer.out_features % rows or layer.in_features % columns:
        return (
            f"has {layer.out_features} outputs and {layer.in_features} inputs: the kernel takes multiples of {rows} "
            f"and {columns}"
        )
    return "" if weight.is_cuda else f"is on the device {weight.device}: move the model with model.cuda()"


def record_inputs(
    model: nn.Module, layers: Mapping[str, nn.Module], example_inputs: Any
) -> dict[str, Counter[LayerInput]]:
    """Run a model without gradients, and return the forms of the inputs of some layers with their numbers of calls.

    Args:
        model: The model.
        layers: Layers of the model, by name; each takes one tensor.
        example_inputs: Inputs of the model.
    """
    found: dict[str, Counter[LayerInput]] = {name: Counter() for name in layers}

    def record(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (x,) = (*args, *kwargs.values())
        found[name][LayerInput(tuple(x.shape), x.stride(), x.dtype)] += 1

    handles = [
        layer.register_forward_pre_hook(partial(record, name), with_kwargs=True) for name, layer in layers.items()
    ]
    try:
        with torch.no_grad():
            call_model(model, example_inputs)
    finally:
        for handle in handles:
            handle.remove()
    return found


def explain_slower(seconds: Mapping[str, float]) -> str:
    """Return the reason to keep the dense kernel, given the median seconds of both, or ``""`` if the sparse is faster.

    >>> explain_slower({"dense": 2.0e-5, "sparse": 3.1e-5})
    'is not faster: 31.0 microseconds sparse, 20.0 dense'
    """
    if seconds["sparse"] < seconds["dense"]:
        return ""
    return f"is not faster: {1e6 * seconds['sparse']:.1f} microseconds sparse, {1e6 * seconds['dense']:.1f} dense"


def explain_difference(sparse: Tensor, dense: Tensor) -> str:
    """Return the reason to keep the dense kernel if outputs differ by more than rounding, or ``""``.

    >>> explain_difference(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0]))
    'has another output: it differs by 0.25 of the largest'
    """
    largest = float(dense.abs().max())
    difference = float((sparse.float() - dense.float()).abs().max())
    # Sums of many products in another order differ by some units of the last of 8 (bfloat16) or 11 bits.
    if difference <= 2e-2 * largest:
        return ""
    return f"has another output: it differs by {difference / largest if largest else difference:.2g} of the largest"


def convert_linear_(layer: nn.Linear, inputs: Counter[LayerInput]) -> str:
    """Give a layer a semi-structured weight if it is faster; otherwise return the reason."""
    examples = {each: each.random(layer.weight.device) for each in inputs}
    dense = layer.weight.detach()
    modes: tuple[Callable[[], AbstractContextManager[Any]], ...] = (torch.inference_mode, torch.no_grad)
    try:
        sparse = torch.sparse.to_sparse_semi_structured(dense)
        for x in examples.values():
            # Each mode reaches the kernel on another way; one may not take the strides of an input.
            for mode in modes:
                with mode():
                    difference = explain_difference(F.linear(x, sparse, layer.bias), F.linear(x, dense, layer.bias))
                if difference:
                    return difference
        seconds = {"dense": 0.0, "sparse": 0.0}
        for each, x in examples.items():
            for kind, median in _compare({"dense": dense, "sparse": sparse}, x, layer.bias).items():
                seconds[kind] += inputs[each] * median
    except (RuntimeError, NotImplementedError, ValueError) as error:
        # A GPU without sparse tensor cores, a build without cuSPARSELt, an input of another dtype.
        return f"is not supported by the kernel ({reason(error)})"
    slower = explain_slower(seconds)
    if not slower:
        layer.weight = nn.Parameter(sparse, requires_grad=False)
    return slower


@torch.no_grad()
def _compare(weights: Mapping[str, Tensor], x: Tensor, bias: Tensor | None) -> dict[str, float]:
    """Return the median seconds of a linear layer with each of some weights, measured in turns."""

    def call(weight: Tensor) -> None:
        for _ in range(_CALLS_PER_ROUND):
            F.linear(x, weight, bias)

    medians = compare_latencies({kind: partial(call, w) for kind, w in weights.items()}, repeats=_NUM_ROUNDS)
    return {kind: seconds / _CALLS_PER_ROUND for kind, seconds in medians.items()}


def _is_two_of_four(layer: nn.Linear) -> bool:
    return is_n_of_m(layer.weight.detach(), n=2, m=4, dim=1)


def _backend() -> type[SparseSemiStructuredTensor]:
    """Return the class that ``torch.sparse.to_sparse_semi_structured`` makes."""
    # torch documents this switch to users whose machine lacks cuSPARSELt.
    if SparseSemiStructuredTensor._FORCE_CUTLASS:
        return torch.sparse.SparseSemiStructuredTensorCUTLASS
    return torch.sparse.SparseSemiStructuredTensorCUSPARSELT
