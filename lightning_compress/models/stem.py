"""Networks for large images on small ones."""

from __future__ import annotations

from typing import Any

from torch import nn


def keep_resolution_(model: nn.Module, name: str) -> None:
    """Makes a timm network fit for small images: its first convolution gets stride 1, and a max-pool after it goes.

    Weights keep their shapes and names. Where the first convolution has branches side by side, all get stride 1.

    Args:
        model: The network, changed in place.
        name: What to call it in messages.

    Raises:
        ValueError: If its first convolution is not known, has stride 1, or cuts the image into patches.
    """
    branches = _first_convolutions(model)
    if not branches:
        raise ValueError(f"small_input: {name!r} does not say which its first convolution is; leave small_input out.")
    stride = max(max(branch.stride) for branch in branches)
    if stride == 1:
        raise ValueError(f"small_input: the first convolution of {name!r} has stride 1 already; leave small_input out.")
    if max(max(branch.kernel_size) for branch in branches) <= stride:
        raise ValueError(
            f"small_input: {name!r} cuts images into patches of {stride}x{stride}, and what follows is made for them; "
            "leave small_input out."
        )
    for branch in branches:
        branch.stride = (1, 1)
    if pool := _pool_after(model, branches[-1]):
        model.set_submodule(pool, nn.Identity())


def _first_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """What timm names as the first convolution: one, or its branches."""
    cfg: Any = getattr(model, "default_cfg", None) or {}
    places = cfg.get("first_conv") or ()
    modules = dict(model.named_modules())
    found = [modules.get(place) for place in ([places] if isinstance(places, str) else places)]
    convolutions = [module for module in found if isinstance(module, nn.Conv2d)]
    return convolutions if len(convolutions) == len(found) else []


def _pool_after(model: nn.Module, convolution: nn.Conv2d) -> str:
    """Name of the max-pool of the stem; nothing if there is none."""
    # ResNets have it under this name, behind up to three convolutions.
    if isinstance(getattr(model, "maxpool", None), nn.Module):
        return "maxpool"
    leaves = [(name, module) for name, module in model.named_modules() if not next(module.children(), None)]
    start = next(index for index, (_, module) in enumerate(leaves) if module is convolution)
    for name, module in leaves[start + 1 :]:
        if isinstance(module, nn.MaxPool2d):
            return name
        if any(parameter.ndim > 1 for parameter in module.parameters()):
            return ""  # the next layer
    return ""
