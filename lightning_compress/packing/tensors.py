"""The tensors of a model that go into a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.packing.bit_patterns import DTYPES, dtype_name

HALVES = ("codebooks", "norms")
_COMPILED = "_orig_mod."
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def plain_name(name: str) -> str:
    """A tensor's name without ``torch.compile``.

    >>> plain_name("_orig_mod.net._orig_mod.weight")
    'net.weight'
    """
    return name.replace(_COMPILED, "")


def tensors_of(model: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict by their plain names.

    Raises:
        ValueError: For what is no tensor, or none that has bits of its own in memory.
    """
    state: Mapping[str, Any] = model.state_dict() if isinstance(model, nn.Module) else model
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(f"save_packed: {name!r} is a {type(value).__name__}; only tensors can be packed.")
        if value.is_meta or value.layout != torch.strided or dtype_name(value.dtype) not in DTYPES:
            raise ValueError(
                f"save_packed: {name!r} ({value.dtype}, {value.layout}, on {value.device.type}) has no plain values "
                "in memory that could be packed."
            )
    return {plain_name(name): value.detach() for name, value in state.items()}


def shared_with(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Of every tensor that is another one under a second name, the first name."""
    first: dict[Any, str] = {}
    found = {}
    for name, tensor in tensors.items():
        if tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_neg())
            other = first.setdefault((*key, tensor.is_conj()), name)
            if other != name:
                found[name] = other
    return found


def norms_of(model: nn.Module | Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> frozenset[str]:
    """Names of tensors that belong to normalization layers: by their class, or beside a running mean."""
    owners = {name.rpartition(".")[0] for name in tensors if name.rpartition(".")[2] == "running_mean"}
    if isinstance(model, nn.Module):
        owners |= {plain_name(f"{name}.")[:-1] for name, module in model.named_modules() if isinstance(module, _NORMS)}
    return frozenset(name for name in tensors if name.rpartition(".")[0] in owners)


def checked_halves(half: Sequence[str]) -> frozenset[str]:
    """What is to be rounded to float16.

    Raises:
        ValueError: For what cannot be.
    """
    names = (half,) if isinstance(half, str) else tuple(half)
    unknown = [name for name in names if name not in HALVES]
    if unknown:
        raise ValueError(f"save_packed(half={half!r}): {unknown[0]!r} is none of {', '.join(map(repr, HALVES))}.")
    return frozenset(names)


def as_half(tensor: Tensor) -> Tensor | None:
    """A tensor in float16, or ``None`` if it is not wider, or has values that are too large for it."""
    if tensor.dtype not in (torch.float32, torch.float64):
        return None
    rounded = tensor.half()
    return rounded if torch.equal(rounded.isfinite(), tensor.isfinite()) else None
