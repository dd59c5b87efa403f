"""Adaptation of a timm network's stem to small images."""

from __future__ import annotations

from typing import Any

from torch import nn


def keep_resolution_(model: nn.Module, name: str) -> None:
    """Set the stride of a timm network's first convolution to 1, and remove a max-pool after it, in place.

    Shapes and names of the weights stay. If the first convolution has parallel branches, the stride of each is set.

    Args:
        model: The network.
        name: Name of the network in error messages.

    Raises:
        ValueError: If the first convolution is unknown, has stride 1, or is a patch embedding.
    """
    branches = _first_convolutions(model)
    if not branches:
        raise ValueError(f"small_input: the first convolution of {name!r} is unknown; leave small_input out.")
    stride = max(max(branch.stride) for branch in branches)
    if stride == 1:
        raise ValueError(f"small_input: the first convolution of {name!r} has stride 1 already; leave small_input out.")
    # Without overlap the stride belongs to the architecture: later layers and position embeddings count patches.
    if max(max(branch.kernel_size) for branch in branches) <= stride:
        raise ValueError(
            f"small_input: {name!r} embeds patches of {stride}x{stride}, on which later layers depend; leave "
            "small_input out."
        )
    for branch in branches:
        branch.stride = (1, 1)
    if pool := _pool_after(model, branches[-1]):
        model.set_submodule(pool, nn.Identity())


def _first_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions that timm's configuration names as the first: one, or its branches."""
    cfg: Any = getattr(model, "default_cfg", None) or {}
    names = cfg.get("first_conv") or ()
    modules = dict(model.named_modules())
    named = [modules.get(name) for name in ([names] if isinstance(names, str) else names)]
    convolutions = [module for module in named if isinstance(module, nn.Conv2d)]
    return convolutions if len(convolutions) == len(named) else []


def _pool_after(model: nn.Module, convolution: nn.Conv2d) -> str:
    """Return the name of the max-pool of the stem, or the empty string if there is none."""
    # In ResNets up to three convolutions stand before it, so the search below would miss it.
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        return "maxpool"
    leaves = [(name, module) for name, module in model.named_modules() if not next(module.children(), None)]
    start = next(index for index, (_, module) in enumerate(leaves) if module is convolution)
    for name, module in leaves[start + 1 :]:
        if isinstance(module, nn.MaxPool2d):
            return name
        # A weight matrix or kernel begins the next layer; norms have vectors only.
        if any(parameter.ndim > 1 for parameter in module.parameters()):
            return ""
    return ""
