"""Channel groups built from the modules of a dependency group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_compress.channels.groups import ChannelGroup, ChannelSlice
from lightning_compress.channels.module_sizes import is_depthwise


class RemovalError(Exception):
    """Reason why the channels of a layer cannot be removed."""


@dataclass(frozen=True, eq=False)
class Member:
    """Input or output side of a module in a dependency group.

    Attributes:
        name: Name of the module.
        module: The module, or a parameter that belongs to no layer with a known layout.
        is_output: True if they are its output channels, False for its input channels.
        positions: Indices of the channels on that side, int64 of shape ``(num_positions,)``.
        channels: Channel of the root layer at each position, int64 of shape ``(num_positions,)``.
    """

    name: str
    module: nn.Module | nn.Parameter
    is_output: bool
    positions: Tensor
    channels: Tensor

    def slice_of(self, tensor: str, dim: int) -> ChannelSlice:
        """Return the channels as a slice of a tensor that the module owns.

        Raises:
            RemovalError: If the tensor has too few channels, or is not a parameter or buffer.
        """
        assert isinstance(self.module, nn.Module)
        if tensor not in {**self.module._parameters, **self.module._buffers}:
            raise RemovalError(f"the {tensor} of {self.name!r} is computed from other tensors")
        if int(self.positions.max()) >= getattr(self.module, tensor).shape[dim]:
            raise RemovalError(f"{self.name!r} has fewer channels than its dependencies")
        return ChannelSlice(f"{self.name}.{tensor}".lstrip("."), dim, self.positions, self.channels)


def build_group(paths: Sequence[Member]) -> ChannelGroup:
    """Build a channel group from modules, each given once for every path to it, the root layer first.

    Raises:
        RemovalError: If channels cannot be removed from one module without a change in the output of the others.
    """
    members = _merge_paths(paths)
    # Two channels are one if they share a position in a module, or an offset within the groups of a convolution.
    labels = [(member.channels, member.positions) for member in members]
    labels += [_group_offsets(member) for member in members if _is_grouped(member.module)]
    components = _connected_components(int(paths[0].channels.max()) + 1, labels)
    output_slices: list[ChannelSlice] = []
    carried_slices: list[ChannelSlice] = []
    input_slices: list[ChannelSlice] = []
    for member in members:
        positions, first = _unique_positions(member.positions)
        member = replace(member, positions=positions, channels=components[member.channels[first]])
        output_slices += _output_slices(member)
        carried_slices += _carried_slices(member)
        input_slices += _input_slices(member)
    return ChannelGroup(
        paths[0].name, int(components.max()) + 1, tuple(output_slices), tuple(carried_slices), tuple(input_slices)
    )


def _output_slices(member: Member) -> list[ChannelSlice]:
    """Return the slices of tensors that produce the channels.

    Raises:
        RemovalError: If the module is not a layer from which channels can be removed.
    """
    module = member.module
    if isinstance(module, (_ConvNd, nn.Linear)):
        if not member.is_output:
            return []
        weight = member.slice_of("weight", 1 if isinstance(module, _ConvTransposeNd) else 0)
        return [weight] if module.bias is None else [weight, member.slice_of("bias", 0)]
    if isinstance(module, _BatchNorm) and module.affine:
        return [member.slice_of("weight", 0), member.slice_of("bias", 0)]
    if isinstance(module, nn.PReLU):
        return []
    if isinstance(module, nn.Parameter):
        raise RemovalError(f"its channels depend on the parameter {member.name!r} outside of any supported layer")
    # A norm without a scale maps a zero channel to a constant; other modules, such as LayerNorm, mix channels.
    reason = "has no scale per channel" if isinstance(module, _NormBase) else "mixes channels"
    raise RemovalError(f"its channels pass through {member.name!r}, and {type(module).__name__} {reason}")


def _carried_slices(member: Member) -> list[ChannelSlice]:
    """Return the slices of tensors with entries per channel that do not matter for a zero channel."""
    module = member.module
    if isinstance(module, _BatchNorm):
        statistics = [name for name in ("running_mean", "running_var") if getattr(module, name) is not None]
        return [member.slice_of(name, 0) for name in statistics]
    # A single slope is shared by all channels.
    return [member.slice_of("weight", 0)] if isinstance(module, nn.PReLU) and module.num_parameters > 1 else []


def _input_slices(member: Member) -> list[ChannelSlice]:
    """Return the slices of weights that consume the channels."""
    module = member.module
    if member.is_output or not isinstance(module, (_ConvNd, nn.Linear)):
        return []
    if _is_grouped(module):
        # The input dimension of the weight covers one group of the convolution, and all groups lose the same offsets.
        assert isinstance(module, _ConvNd)
        first = member.positions < module.in_channels // module.groups
        member = replace(member, positions=member.positions[first], channels=member.channels[first])
    return [member.slice_of("weight", 0 if isinstance(module, _ConvTransposeNd) else 1)]


def _is_grouped(module: nn.Module | nn.Parameter) -> bool:
    return isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module)


def _merge_paths(paths: Sequence[Member]) -> list[Member]:
    """Return each module and side once, with the positions of all paths to it."""
    merged: dict[tuple[nn.Module | nn.Parameter, bool], Member] = {}
    for path in paths:
        # In modules that map each channel to itself, input and output channels are the same.
        elementwise = not isinstance(path.module, (_ConvNd, nn.Linear)) or is_depthwise(path.module)
        key = (path.module, elementwise or path.is_output)
        empty = replace(path, is_output=key[1], positions=path.positions[:0], channels=path.channels[:0])
        old = merged.get(key, empty)
        positions, channels = torch.cat((old.positions, path.positions)), torch.cat((old.channels, path.channels))
        merged[key] = replace(old, positions=positions, channels=channels)
    return list(merged.values())


def _unique_positions(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sorted unique positions, and the index of the first occurrence of each."""
    unique, inverse = positions.unique(return_inverse=True)
    first = torch.full((len(unique),), len(positions)).scatter_reduce(0, inverse, torch.arange(len(positions)), "amin")
    return unique, first


def _group_offsets(member: Member) -> tuple[Tensor, Tensor]:
    """Return the channels of a grouped convolution and their offsets within the convolution's groups."""
    module = member.module
    assert isinstance(module, _ConvNd)
    width = module.out_channels if member.is_output else module.in_channels
    if isinstance(module, _ConvTransposeNd):
        raise RemovalError(f"{member.name!r} is a grouped transposed convolution, which is not supported")
    if not torch.equal(member.positions.unique(), torch.arange(width)):
        raise RemovalError(f"its channels are only a part of those of the grouped convolution {member.name!r}")
    return member.channels, member.positions % (width // module.groups)


def _connected_components(num_channels: int, labels: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Number the components of channels that are connected by equal labels.

    Args:
        num_channels: Number of channels.
        labels: Pairs of channels and their labels, int64; equal labels within a pair connect two channels.

    Returns:
        Component of each channel, int64 of shape ``(num_channels,)``, numbered without gaps.

    >>> _connected_components(6, [(torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2]))]).tolist()
    [0, 1, 2, 0, 1, 2]
    """
    component = torch.arange(num_channels)
    while True:
        before = component.clone()
        # Propagate the least component number over each set of equal labels until nothing changes.
        for channels, values in labels:
            least = torch.full((int(values.max()) + 1,), num_channels)
            least = least.scatter_reduce(0, values, component[channels], "amin")
            component = component.scatter_reduce(0, channels, least[values], "amin")
        if torch.equal(component, before):
            return component.unique(return_inverse=True)[1]
