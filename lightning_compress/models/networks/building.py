"""What the networks without pretrained weights are built with."""

from __future__ import annotations

from typing import Any

from torch import nn

# Arguments that timm hands to every factory and that mean nothing to these networks.
_TIMM_EXTRAS = ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def init_he_(model: nn.Module) -> None:
    """He's normal initialisation of all convolutions and linear layers; biases become zero."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def own_arguments(name: str, pretrained: bool, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What of the arguments that timm hands to a factory the network ``name`` takes.

    Raises:
        ValueError: If pretrained weights are asked for, which there are none of.
    """
    if pretrained:
        raise ValueError(f"{name} has no pretrained weights: load a file with checkpoint=... instead.")
    return {key: value for key, value in kwargs.items() if key not in _TIMM_EXTRAS}
