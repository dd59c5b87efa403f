"""Modules whose parameters are sharded over ranks, by FSDP2 or tensor parallelism, and copies of them that are not."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from lightning_compress.module_copies import copy_module, is_defined_in, remove_forward_hooks_

AnyModule = TypeVar("AnyModule", bound=nn.Module)

_STATE_KEY = "__composable_api_state_key"  # prefix of the attributes in which torch keeps the state of fully_shard
_MARKS = ("_is_fsdp_managed_module", "_fsdp_use_orig_params")
_FILL = 2.0**-6  # between the usual magnitudes of weights, so that activations stay finite through many layers


def is_sharded(module: nn.Module) -> bool:
    """Return True if parameters of a module are sharded, also while they are gathered for a forward pass."""
    parts = any(isinstance(part, FSDPModule) for part in module.modules())
    return parts or any(isinstance(parameter, DTensor) for parameter in module.parameters())


def mesh_of(module: nn.Module) -> DeviceMesh | None:
    """Return the mesh over which the first sharded parameter of a module is sharded; ``None`` if there is none."""
    reshard(module)
    return next((p.device_mesh for p in module.parameters() if isinstance(p, DTensor)), None)


def reshard(module: nn.Module) -> None:
    """Let a module hold its sharded parameters, those of the optimizer, again.

    The outermost module of FSDP2 keeps its gathered parameters after a forward pass until the next backward pass:
    after validation it holds other tensors than its optimizer.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def copy_unsharded(module: AnyModule, full: Callable[[Tensor], Tensor]) -> AnyModule:
    """Copy a sharded module as the module that it was before; see :func:`copy_module`.

    Args:
        module: Module with sharded parameters.
        full: Returns the full tensor for a sharded parameter, such as :func:`placeholder`.

    Returns:
        The copy, of the original classes and without hooks that gather parameters or lay out activations.
    """
    reshard(module)
    memo: dict[int, Any] = {}
    kept: list[Any] = []  # as long as ids stand for objects
    for parameter in (p for p in module.parameters() if isinstance(p, DTensor)):
        memo[id(parameter)] = nn.Parameter(full(parameter), requires_grad=parameter.requires_grad)
    for buffer in (b for b in module.buffers() if isinstance(b, DTensor)):
        memo[id(buffer)] = full_tensor(buffer)
    for part in module.modules():
        for hook in (*part._forward_hooks.values(), *part._forward_pre_hooks.values()):
            if _is_of_torch_distributed(hook):
                memo[id(hook)] = _do_nothing
        for name, state in vars(part).items():
            if name.startswith(_STATE_KEY):
                memo[id(state)] = kept
    with _original_classes(module), _without_state_dict_hooks(module):
        copied = copy_module(module, memo)
    remove_forward_hooks_(copied, lambda hook: hook is _do_nothing)
    for part in copied.modules():
        for name in [name for name in vars(part) if name.startswith(_STATE_KEY) or name in _MARKS]:
            del vars(part)[name]
    return copied


def placeholder(parameter: Tensor) -> Tensor:
    """Return a tensor of the shape of a parameter and with one value, which takes no memory and cannot be written.

    >>> tensor = placeholder(torch.ones(2, 3))
    >>> tensor.shape, tensor.untyped_storage().nbytes()
    (torch.Size([2, 3]), 4)
    """
    return torch.full((), _FILL, dtype=parameter.dtype).expand(parameter.shape)


def full_tensor(tensor: Tensor) -> Tensor:
    """Return the full tensor for one that may be sharded, detached; a collective if it is."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach()


def copy_whole(module: AnyModule, full: Callable[[Tensor], Tensor] = full_tensor) -> AnyModule:
    """Copy a module that may be sharded, as :func:`copy_module` does.

    Args:
        module: The module.
        full: As of :func:`copy_unsharded`; by default :func:`full_tensor`, a collective.
    """
    return copy_unsharded(module, full) if is_sharded(module) else copy_module(module)


def shard_of(full: Tensor, like: Tensor) -> Tensor:
    """Return this rank's shard of a full tensor, as a tensor that may be sharded is laid out."""
    if not isinstance(like, DTensor):
        return full
    laid_out = distribute_tensor(full.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return laid_out.to_local().clone()  # a view would keep the full tensor


def shard_along(values: Tensor, like: DTensor, dims: Mapping[int, int]) -> Tensor:
    """Return this rank's shard of values that belong to some dimensions of a sharded tensor.

    Args:
        values: The values, equal on all ranks.
        like: The sharded tensor.
        dims: Its dimensions to those of the values; sharding of other dimensions leaves the values whole.
    """
    placements = [
        Shard(dims[own.dim]) if isinstance(own, Shard) and own.dim in dims else Replicate() for own in like.placements
    ]
    return distribute_tensor(values, like.device_mesh, placements, src_data_rank=None).to_local()


def map_shard(x: DTensor, function: Callable[[Tensor], Tensor]) -> DTensor:
    """Return a sharded tensor with a function applied to this rank's shard, which keeps its shape; differentiable."""
    changed = function(x.to_local())
    return DTensor.from_local(changed, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=x.stride())


def without_partial_sums(x: DTensor) -> DTensor:
    """Return a sharded tensor whose ranks hold values, not summands: a collective if they do."""
    if not any(placement.is_partial() for placement in x.placements):
        return x
    return x.redistribute(placements=[Replicate() if own.is_partial() else own for own in x.placements])


def _is_of_torch_distributed(hook: Any) -> bool:
    """Return True for the hooks of FSDP2 and of tensor parallelism."""
    return (
        is_defined_in(hook, "torch") and re.search(r"\.(fsdp|distributed\.tensor)\.", f"{hook.__module__}.") is not None
    )


def _do_nothing(*args: Any, **kwargs: Any) -> None:
    """Replace such hooks in a copy."""


@contextmanager
def _original_classes(module: nn.Module) -> Iterator[None]:
    """Give modules their own classes inside the context: those of FSDP2 cannot be copied."""
    changed = [(part, type(part)) for part in module.modules() if isinstance(part, FSDPModule)]
    for part, made in changed:
        part.__class__ = made.__mro__[made.__mro__.index(FSDPModule) + 1]
    try:
        yield
    finally:
        for part, made in changed:
            part.__class__ = made


@contextmanager
def _without_state_dict_hooks(module: nn.Module) -> Iterator[None]:
    """Remove the hooks on state dicts with which FSDP2 shards the original inside the context."""
    taken = []
    for part in module.modules():
        for hooks in (part._state_dict_pre_hooks, part._load_state_dict_pre_hooks):
            for key, hook in list(hooks.items()):
                if _is_of_torch_distributed(getattr(hook, "hook", hook)):
                    taken.append((hooks, key, hook, list(hooks)))
                    del hooks[key]
    try:
        yield
    finally:
        for hooks, key, hook, order in reversed(taken):
            hooks[key] = hook
            for other in order:
                hooks.move_to_end(other)
