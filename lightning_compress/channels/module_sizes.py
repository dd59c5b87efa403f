"""Integer attributes of modules that follow from the shapes of their tensors."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_compress.layer_kinds import is_conv1d


def is_depthwise(module: nn.Module | nn.Parameter) -> bool:
    """Return True if a module is a convolution with one input channel per group."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels


def module_sizes(module: nn.Module, shape: Sequence[int] | None = None) -> dict[str, int]:
    """Return the size attributes that a module should have for its weight, which may have lost channels.

    Args:
        module: The module.
        shape: Shape of its weight; by default that of the weight it has.

    >>> module_sizes(nn.Conv2d(8, 8, 3, groups=8), (5, 1, 3, 3))
    {'in_channels': 5, 'out_channels': 5, 'groups': 5}
    """
    if isinstance(module, nn.RNNBase):
        return {"input_size": int(module.get_parameter("weight_ih_l0").shape[1])}
    if isinstance(module, nn.RNNCellBase):
        return {"input_size": module.weight_ih.shape[1]}
    weight = getattr(module, "weight", None)
    if not isinstance(weight, nn.Parameter):
        return {}
    shape = tuple(weight.shape if shape is None else shape)
    if is_depthwise(module):
        assert isinstance(module, _ConvNd)
        multiplier = max(1, module.out_channels // module.in_channels)
        groups = shape[0] // (1 if isinstance(module, _ConvTransposeNd) else multiplier)
        return {"in_channels": groups, "out_channels": groups * multiplier, "groups": groups}
    if isinstance(module, _ConvTransposeNd):
        return {"in_channels": shape[0], "out_channels": shape[1] * module.groups}
    if isinstance(module, _ConvNd):
        return {"in_channels": shape[1] * module.groups, "out_channels": shape[0]}
    if isinstance(module, nn.Linear):
        return {"in_features": shape[1], "out_features": shape[0]}
    if isinstance(module, _BatchNorm):
        return {"num_features": shape[0]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": shape[0]}
    if isinstance(module, nn.Embedding):
        return {"embedding_dim": shape[1]}
    if is_conv1d(module):
        return {"nx": shape[0], "nf": shape[1]}
    return {}
