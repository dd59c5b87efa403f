"""Integer attributes of modules that follow from the shapes of their tensors."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def is_depthwise(module: nn.Module | nn.Parameter) -> bool:
    """Return True if a module is a convolution with one input and one output channel per group."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def module_sizes(module: nn.Module) -> dict[str, int]:
    """Return the size attributes that a module should have for its tensors, which may have lost channels.

    >>> conv = nn.Conv2d(8, 8, 3, groups=8)
    >>> conv.weight = nn.Parameter(conv.weight[:5])
    >>> module_sizes(conv)
    {'in_channels': 5, 'out_channels': 5, 'groups': 5}
    """
    if is_depthwise(module):
        assert isinstance(module, _ConvNd)
        return dict.fromkeys(("in_channels", "out_channels", "groups"), len(module.weight))
    if isinstance(module, _ConvTransposeNd):
        return {"in_channels": module.weight.shape[0], "out_channels": module.weight.shape[1] * module.groups}
    if isinstance(module, _ConvNd):
        return {"in_channels": module.weight.shape[1] * module.groups, "out_channels": module.weight.shape[0]}
    if isinstance(module, nn.Linear):
        return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    if isinstance(module, _BatchNorm) and module.weight is not None:
        return {"num_features": len(module.weight)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": len(module.weight)}
    return {}
