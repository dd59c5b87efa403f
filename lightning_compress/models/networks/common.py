"""Initialization and argument handling shared by the networks without pretrained weights."""

from __future__ import annotations

from typing import Any

from torch import nn

# Arguments that timm passes to every model function and that these networks do not use.
_TIMM_EXTRAS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def init_he_(model: nn.Module) -> None:
    """Initialize all convolutions and linear layers in place with He's normal distribution, and biases with zero."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def own_arguments(name: str, pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a timm model function without those that only timm's networks use.

    Args:
        name: Name of the network, for the error message.
        pretrained: True if pretrained weights are requested.
        kwargs: Keyword arguments of the model function.

    Raises:
        ValueError: If pretrained weights are requested.
    """
    if pretrained:
        raise ValueError(f"{name} has no pretrained weights: load a file with checkpoint=... instead.")
    return {key: value for key, value in kwargs.items() if key not in _TIMM_EXTRAS}
