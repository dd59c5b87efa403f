"""Copies of a model for deployment."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lightning_compress.quantization.insertion import is_quantized, remove_quantizers, round_weights_
from lightning_compress.quantization.lowering import quantized_layers, round_biases_
from lightning_compress.quantization.semi_structured import use_semi_structured_
from lightning_compress.quantization.simulation import simulate
from lightning_compress.quantization.strip_compile import strip_compile
from lightning_compress.sharded_modules import copy_whole


def finalize(
    model: nn.Module, *, module: str = "", example_inputs: Any = None, semi_structured: bool = False
) -> nn.Module:
    """Copy a model for deployment: in eval mode, with frozen parameters and without ``torch.compile``.

    Fake-quantized weights are written into the parameters; pruned and clustered weights are in them already.
    Activation quantizers stay, since their ranges are part of the model.

    Args:
        model: Model, which is not modified. A sharded one is gathered on each rank: call it on all of them.
        module: Name of the deployable submodule; ``""`` for the whole model.
        example_inputs: Inputs of that submodule: a tensor, a tuple, or a dict of keyword arguments. If given, biases of
            a quantized model are rounded to their INT32 values as well, so that the copy computes the same as the
            exported INT8 model; with few bits, small differences of a bias grow in later layers.
        semi_structured: Store 2:4 sparse weights of linear layers as ``torch.sparse`` semi-structured tensors, layer by
            layer, wherever their kernel is faster than the dense one on inputs of the shapes that ``example_inputs``
            give, as medians measured in turns on the device: about half of the layer's multiplications, Mishra et al.
            2021 (arXiv:2104.08378). The model must be on an NVIDIA GPU with sparse tensor cores (compute capability
            8.0) and in float16 or bfloat16; a warning lists the linear layers that stay dense, and why. Such a copy
            computes on this device, without gradients: save, pack and export one that is made without this option.

    Returns:
        The copy.

    Raises:
        ValueError: If there is no such submodule, or (with ``example_inputs``) if the model cannot be lowered. With
            ``semi_structured``, if there is no CUDA device, no ``example_inputs``, or no linear layer with a 2:4 sparse
            weight, or if the model is quantized.

    >>> finalize(nn.Sequential(nn.Linear(2, 1)), module="0").weight.requires_grad
    False
    """
    if semi_structured:
        _check_semi_structured(model, example_inputs)
    plain = copy_for_deployment(model, module, "finalize")
    round_weights_(plain)
    if semi_structured:
        _warn_of_dense(use_semi_structured_(plain, example_inputs))
    if example_inputs is not None and is_quantized(plain):
        round_biases_(plain, quantized_layers(simulate(plain, example_inputs)))
    return plain


def float_copy(model: nn.Module, *, module: str = "") -> nn.Module:
    """Copy a model as :func:`finalize` does, without its quantizers: the FP32 baseline of a quantized model.

    Args:
        model: Model, which is not modified.
        module: Name of the deployable submodule; ``""`` for the whole model.

    Returns:
        The copy, with unrounded weights.

    Raises:
        ValueError: If there is no such submodule.

    >>> import torch
    >>> from lightning_compress import calibrate
    >>> quantized = calibrate(nn.Linear(2, 1), [torch.ones(1, 2)])
    >>> list(float_copy(quantized).state_dict())
    ['weight', 'bias']
    """
    plain = copy_for_deployment(model, module, "float_copy")
    remove_quantizers(plain)
    return plain


def copy_for_deployment(model: nn.Module, module: str, caller: str) -> nn.Module:
    """Return a copy of a submodule in eval mode, with frozen parameters and without ``torch.compile``.

    Raises:
        ValueError: If there is no such submodule.
    """
    if module and module not in dict(model.named_modules()):
        raise ValueError(f"{caller}: the model has no module {module!r}.")
    return strip_compile(copy_whole(model.get_submodule(module)).eval()).requires_grad_(False)


def _check_semi_structured(model: nn.Module, example_inputs: Any) -> None:
    caller = "finalize(semi_structured=True)"
    if not torch.cuda.is_available():
        raise ValueError(f"{caller}: there is no CUDA device; finalize on one, or leave semi_structured out.")
    if example_inputs is None:
        raise ValueError(f"{caller}: example_inputs are needed, on whose shapes layers are timed.")
    if is_quantized(model):
        raise ValueError(f"{caller} does not support quantized models: finalize lc.float_copy(model) instead.")


def _warn_of_dense(dense: Mapping[str, str]) -> None:
    if dense:
        layers = "".join(f"\n  {name!r} {why}" for name, why in dense.items())
        warnings.warn(f"finalize(semi_structured=True): {len(dense)} linear layers stay dense:{layers}", stacklevel=3)
