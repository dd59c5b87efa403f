"""State dict of a model as the tensors of a packed file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.packing.bit_patterns import DTYPES, dtype_name

HALF_CHOICES = ("codebooks", "norms", "biases")
_COMPILED = "_orig_mod."  # not from targets: packed files can be read with this folder alone
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def uncompiled_name(name: str) -> str:
    """Return a tensor's name without the prefixes of ``torch.compile``.

    >>> uncompiled_name("_orig_mod.net._orig_mod.weight")
    'net.weight'
    """
    return name.replace(_COMPILED, "")


def tensors_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a model or state dict by their uncompiled names.

    Raises:
        ValueError: If the state dict holds an object that is not a tensor, or a tensor without strided memory of its
            own, for example on the meta device, that is sharded, or of an unsupported dtype.
    """
    state: Mapping[str, Any] = model.state_dict() if isinstance(model, nn.Module) else model
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"save_packed: {name!r} is a {type(value).__name__}; only tensors can be packed.")
        if hasattr(value, "full_tensor"):
            raise ValueError(f"save_packed: {name!r} is sharded over ranks: pack lc.finalize(model), which gathers it.")
        if value.is_meta or value.layout != torch.strided or dtype_name(value.dtype) not in DTYPES:
            raise ValueError(
                f"save_packed: {name!r} ({value.dtype}, {value.layout}, on {value.device.type}) cannot be packed; only "
                "dense tensors in memory are supported."
            )
    return {uncompiled_name(name): value.detach() for name, value in state.items()}


def shared_names(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the first name of each tensor that has several names, by its other names."""
    first: dict[Any, str] = {}
    found = {}
    for name, tensor in tensors.items():
        # The data pointers of empty tensors are all zero.
        if tensor.numel():
            # Shape, strides and the lazy bits too, because views of one memory may hold different values.
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_neg())
            other = first.setdefault((*key, tensor.is_conj()), name)
            if other != name:
                found[name] = other
    return found


def norm_tensor_names(model: nn.Module | Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Return the names of the tensors of normalization layers.

    Layers are recognized by their class, and in a state dict, which has no classes, by a running mean.
    """
    owners = {name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] == "running_mean"}
    if isinstance(model, nn.Module):
        named = model.named_modules()
        owners |= {uncompiled_name(f"{name}.")[:-1] for name, module in named if isinstance(module, _NORMS)}
    return frozenset(name for name in tensors if name.rpartition(".")[0] in owners)


def is_bias(name: str, tensor: Tensor) -> bool:
    """Return True for the bias of a layer, such as ``"fc.bias"`` or ``"lstm.bias_ih_l0"``.

    >>> is_bias("fc.bias", torch.zeros(3)), is_bias("attention.bias_table", torch.zeros(9, 4))
    (True, False)
    """
    return tensor.ndim == 1 and "bias" in name.rpartition(".")[2]


def checked_halves(half: Sequence[str]) -> frozenset[str]:
    """Return the groups of tensors to round to float16.

    Raises:
        ValueError: If a group is unknown.
    """
    names = (half,) if isinstance(half, str) else tuple(half)
    unknown = [name for name in names if name not in HALF_CHOICES]
    if unknown:
        choices = f"{', '.join(map(repr, HALF_CHOICES[:-1]))} or {HALF_CHOICES[-1]!r}"
        raise ValueError(f"save_packed(half={half!r}): {unknown[0]!r} is not supported; use {choices}.")
    return frozenset(names)


def to_half(tensor: Tensor) -> Tensor | None:
    """Return a float16 copy of a wider tensor, or ``None`` if its values exceed the range of float16."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return None
    rounded = tensor.half()
    return rounded if torch.equal(rounded.isfinite(), tensor.isfinite()) else None
