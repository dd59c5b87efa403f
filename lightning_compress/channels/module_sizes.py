"""Integer attributes of modules that follow from the shapes of their tensors."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def is_depthwise(module: nn.Module | nn.Parameter) -> bool:
    """Return True if a module is a convolution with one input channel per group."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels


def module_sizes(module: nn.Module) -> dict[str, int]:
    """Return the size attributes that a module should have for its tensors, which may have lost channels.

    >>> conv = nn.Conv2d(8, 8, 3, groups=8)
    >>> conv.weight = nn.Parameter(conv.weight[:5])
    >>> module_sizes(conv)
    {'in_channels': 5, 'out_channels': 5, 'groups': 5}
    """
    if is_depthwise(module):
        assert isinstance(module, _ConvNd)
        multiplier = max(1, module.out_channels // module.in_channels)
        groups = len(module.weight) // (1 if isinstance(module, _ConvTransposeNd) else multiplier)
        return {"in_channels": groups, "out_channels": groups * multiplier, "groups": groups}
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
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": module.weight.shape[1]}
    if {"nx", "nf"} <= vars(module).keys() and isinstance(module.weight, nn.Parameter):  # Conv1D of transformers
        return {"nx": module.weight.shape[0], "nf": module.weight.shape[1]}
    if isinstance(module, nn.RNNBase):
        return {"input_size": module.weight_ih_l0.shape[1]}
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1]}
    return {}
