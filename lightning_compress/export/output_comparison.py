"""Comparison of the outputs of a file with those of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten_with_path, tree_leaves

from lightning_compress.arguments import Arguments
from lightning_compress.module_copies import copy_module
from lightning_compress.quantization.finalize import finalize


def tensor_leaves(values: Any) -> list[Tensor]:
    """Return the tensors in nested lists, tuples and dicts."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def model_outputs(model: nn.Module, inputs: Arguments) -> list[Tensor]:
    """Run a copy of a model, fake-quantized if it has quantizers, in eval mode."""
    args, kwargs = inputs
    with torch.no_grad():
        return tensor_leaves(finalize(model)(*args, **kwargs))


def output_names(model: nn.Module, inputs: Arguments) -> list[str] | None:
    """Return the names of the tensors of a model that returns a dict, else ``None``.

    A tensor is named by its key, and one in a nested structure by all keys and positions, as ``"hidden_states_0"``.
    """
    args, kwargs = inputs
    with torch.no_grad():
        output = copy_module(model)(*args, **kwargs)
    if not isinstance(output, dict):
        return None
    leaves, _ = tree_flatten_with_path(output)
    return ["_".join(map(_key_name, path)) for path, leaf in leaves if isinstance(leaf, Tensor)]


def _key_name(key: Any) -> str:
    return str(next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name)))


def relative_difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the largest difference of outputs, relative to the largest absolute value of each."""
    return max(
        float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-12))
        for a, b in zip(expected, actual, strict=True)
        if a.numel()
    )


def top1_agreement(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Return the fraction of samples with the same argmax over the last dimension of the first output."""
    a, b = expected[0], actual[0]
    return float((a.argmax(-1) == b.argmax(-1)).float().mean()) if a.ndim else float(a == b)
