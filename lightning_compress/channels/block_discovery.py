"""Discovery of the residual blocks of a model that are the identity without weights, verified by a trial removal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lightning_compress.channels.groups import ChannelGroup, ChannelSlice
from lightning_compress.channels.removal_check import RemovalCheck, make_removal_check
from lightning_compress.module_copies import copy_module

_IDENTITY_TOLERANCE = 1e-5  # relative, for blocks that compute in float32


def find_blocks(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[list[str], dict[str, str]]:
    """Find the blocks of a model that ``nn.Identity`` can replace once all of their weights are zero.

    A block is the innermost module with layers that returns its input if its weights are zero, as residual blocks do
    with an identity shortcut and without a norm behind the addition. On a copy of the model with random weights, blocks
    are set to zero and then removed; both copies must compute the same output.

    Args:
        model: The model, which is only copied.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.

    Returns:
        Names of the blocks in the order of the model's modules, and by name the reason why a block cannot be removed.

    Raises:
        ValueError: If the model cannot be copied or run, or returns no tensors.
    """
    check = make_removal_check(model, args, dict(kwargs))
    probe = _BlockProbe(copy_module(check.model))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        probe.model(*check.args, **check.kwargs)
    names = [name for name in probe.blocks if not any(other.startswith(f"{name}.") for other in probe.blocks)]
    removable = _removable(check, names)
    reasons = dict.fromkeys(names, "the model computes a different output without it")
    reasons |= {name: reason for name, reason in probe.reasons.items() if name not in names}
    return removable, {name: reason for name, reason in reasons.items() if name not in removable}


def block_group(model: nn.Module, names: Sequence[str]) -> ChannelGroup:
    """Return a group with blocks as its channels, each of which is all weights of the block.

    Args:
        model: The model.
        names: Names of the blocks.
    """
    slices = [
        ChannelSlice(f"{name}.{parameter}", 0, torch.arange(len(tensor)), torch.full((len(tensor),), channel))
        for channel, name in enumerate(names)
        for parameter, tensor in model.get_submodule(name).named_parameters()
    ]
    return ChannelGroup(names[0], len(names), tuple(slices), (), (), blocks=tuple(names))


def zero_modules(model: nn.Module) -> Iterator[str]:
    """Yield the outermost modules with layers of which all parameters are zero."""
    found = ""
    for name, module in model.named_modules():
        if not name or (found and name.startswith(f"{found}.")) or not _has_layers(module):
            continue
        if not any(bool(parameter.any()) for parameter in module.parameters()):
            found = name
            yield name


class _BlockProbe:
    """Calls modules of a model a second time while it runs, without weights.

    Attributes:
        model: The model, with hooks.
        blocks: Names of modules that return their input.
        reasons: By name of other modules that do so, why they cannot be replaced.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.blocks: list[str] = []
        self.reasons: dict[str, str] = {}
        self._calls: list[str] = []
        self._is_probing = False
        for name, module in model.named_modules():
            if name and _has_layers(module) and _owns_parameters(model, name):
                module.register_forward_hook(self._probe(name), with_kwargs=True)

    def _probe(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            if not self._is_probing and _is_like(output, next(iter((*args, *kwargs.values())), None)):
                self._record(name, module, args, kwargs)

        return hook

    def _record(self, name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._is_probing = True
        weights = [parameter.clone() for parameter in module.parameters()]
        try:
            for parameter in module.parameters():
                parameter.zero_()
            x = next(iter((*args, *kwargs.values())))
            change = (module(*args, **kwargs) - x).abs().max()
            is_identity = bool(change <= _IDENTITY_TOLERANCE * x.abs().max())
        finally:
            for parameter, weight in zip(module.parameters(), weights, strict=True):
                parameter.copy_(weight)
            self._is_probing = False
        if is_identity and (len(args) > 1 or kwargs):
            self.reasons[name] = "it is called with more than one argument"
        elif is_identity and name in self._calls:
            self.blocks = [block for block in self.blocks if block != name]
            self.reasons[name] = "it is called more than once"
        elif is_identity:
            self.blocks.append(name)
        self._calls.append(name)


def _removable(check: RemovalCheck, names: Sequence[str]) -> list[str]:
    """Return the blocks that can be removed together, found by bisection."""
    if not names or check.is_exhausted:
        return []
    group = block_group(check.model, names)
    if check.computes_same({group: torch.ones(len(names), dtype=torch.bool)}):
        return list(names)
    half = len(names) // 2
    return _removable(check, names[:half]) + _removable(check, names[half:]) if half else []


def _owns_parameters(model: nn.Module, name: str) -> bool:
    """Return True if the parameters of a module belong to no other, and have a dimension to index."""
    own = {id(parameter): parameter.ndim for parameter in model.get_submodule(name).parameters()}
    users = (n for n, p in model.named_parameters(remove_duplicate=False) if id(p) in own)
    return all(own.values()) and all(user.startswith(f"{name}.") for user in users)


def _has_layers(module: nn.Module) -> bool:
    """Return True for a module with a convolution or a linear layer inside."""
    return any(isinstance(child, (_ConvNd, nn.Linear)) for child in module.modules() if child is not module)


def _is_like(output: Any, x: Any) -> bool:
    return isinstance(output, Tensor) and isinstance(x, Tensor) and output.shape == x.shape and x.is_floating_point()
