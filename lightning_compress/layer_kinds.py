"""Kinds of layers: how they store their weights, and how they compute with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from lightning_compress.module_copies import copy_module

# Their weights have the input channels first.
TRANSPOSED_CONVOLUTIONS = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
# LSTM, GRU and the like, and their cells.
RECURRENT = (nn.RNNBase, nn.RNNCellBase)

_OUTPUT_FIRST = (
    *(nn.Linear, nn.Bilinear, nn.Embedding, nn.EmbeddingBag, nn.MultiheadAttention, nn.modules.conv._ConvNd),
    *RECURRENT,
)


def is_conv1d(module: nn.Module) -> bool:
    """Return True for GPT-2's ``Conv1D`` of transformers: a linear layer that stores its weight as (in, out).

    Recognized by its form, so that transformers is not imported.
    """
    weight = getattr(module, "weight", None)
    named = any(base.__name__ == "Conv1D" for base in type(module).__mro__)
    # Not by the value of its number of features, which differs from the weight's while channels are removed.
    return named and isinstance(weight, Tensor) and weight.ndim == 2 and isinstance(getattr(module, "nf", None), int)


def find_input_dim(module: nn.Module, attribute: str) -> int | None:
    """Return the dimension of a weight along which a layer sums its inputs.

    Other layers than those of torch are run on a unit vector, if their weight is a matrix.

    Args:
        module: The layer; a copy of it is run.
        attribute: Name of its weight.

    Returns:
        0 or 1, or ``None`` if the layer does not multiply its input by the weight or its transpose.

    >>> find_input_dim(nn.Linear(2, 3), "weight"), find_input_dim(nn.ConvTranspose1d(2, 3, 1), "weight")
    (1, 0)
    """
    weight = getattr(module, attribute)
    if isinstance(module, TRANSPOSED_CONVOLUTIONS):
        return 0
    if isinstance(module, _OUTPUT_FIRST) or weight.ndim != 2:
        return 1
    if is_conv1d(module):
        return 0
    return None if isinstance(weight, DTensor) else _run_on_unit_vector(module, attribute)


def find_norm_hook(module: nn.Module, attribute: str) -> str:
    """Return ``"weight_norm"`` or ``"spectral_norm"`` if a hook computes a weight from a parameter; else ``""``.

    >>> find_norm_hook(torch.nn.utils.spectral_norm(nn.Linear(2, 2)), "weight_orig")
    'spectral_norm'
    """
    hooks = [hook for hook in module._forward_pre_hooks.values() if attribute.startswith(getattr(hook, "name", "\0"))]
    # Also without torch's hook: a direction and its length mean the same under any implementation.
    pair = {f"{attribute.rpartition('_')[0]}_{suffix}" for suffix in "gv"}
    if any(isinstance(hook, WeightNorm) for hook in hooks) or pair <= set(module._parameters):
        return "weight_norm"
    return "spectral_norm" if any(isinstance(hook, SpectralNorm) for hook in hooks) else ""


@torch.no_grad()
def _run_on_unit_vector(module: nn.Module, attribute: str) -> int | None:
    """Compare the change of the output by a unit vector to the first row and the first column of the weight."""
    for dim in (1, 0):
        try:
            layer = copy_module(module).eval()
            layer._forward_hooks.clear()
            layer._forward_pre_hooks.clear()
            weight = getattr(layer, attribute)
            # Different values, so that a weight that is constant or symmetric cannot be mistaken for its transpose.
            weight.copy_(torch.arange(weight.numel(), device=weight.device).cos().view(weight.shape))
            zero = torch.zeros(1, weight.shape[dim], dtype=weight.dtype, device=weight.device)
            unit = zero.index_fill(1, torch.zeros(1, dtype=torch.long, device=weight.device), 1.0)
            change, expected = layer(unit) - layer(zero), weight.select(dim, 0)
        except Exception:
            # A layer that is no matrix product may fail in any way, or not be copied at all.
            continue
        if change.shape == (1, len(expected)) and torch.allclose(change[0], expected, rtol=1e-2, atol=1e-2):
            return dim
    return None
