"""What a module contributes to the groups that its channels belong to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from lightning_compress.channels.groups import ChannelGroup, Slice


class Unfit(Exception):
    """Why channels cannot be removed."""


@dataclass(frozen=True, eq=False)
class Member:
    """A module in which channels lie.

    Attributes:
        name: Its name.
        module: The module; a parameter that belongs to none of the known modules.
        writes: Whether they are its output channels, else its input channels.
        positions: Their positions among those, int64.
        channels: The channel of each position, int64.
    """

    name: str
    module: nn.Module | nn.Parameter
    writes: bool
    positions: Tensor
    channels: Tensor

    def at(self, tensor: str, dim: int) -> Slice:
        """The channels in a tensor of the module.

        Raises:
            Unfit: If it has fewer than there should be, or is no tensor of the module's own.
        """
        assert isinstance(self.module, nn.Module)
        if tensor not in {**self.module._parameters, **self.module._buffers}:
            raise Unfit(f"the {tensor} of {self.name!r} is computed from other tensors")
        if int(self.positions.max()) >= getattr(self.module, tensor).shape[dim]:
            raise Unfit(f"{self.name!r} has fewer channels than meet there")
        return Slice(f"{self.name}.{tensor}".lstrip("."), dim, self.positions, self.channels)


def group_of(ways: Sequence[Member]) -> ChannelGroup:
    """The group that modules make up, each given once for every way to it, the root layer first.

    Raises:
        Unfit: If channels cannot be removed from one of them without changing what the others make.
    """
    members = _joined(ways)
    ties = [(member.channels, member.positions) for member in members]
    ties += [_places(member) for member in members if _is_grouped(member.module)]
    number = _merged(int(ways[0].channels.max()) + 1, ties)
    output_slices: list[Slice] = []
    carried_slices: list[Slice] = []
    input_slices: list[Slice] = []
    for member in members:
        positions, first = _unique(member.positions)
        member = replace(member, positions=positions, channels=number[member.channels[first]])
        _add(member, output_slices, carried_slices, input_slices)
    return ChannelGroup(
        ways[0].name, int(number.max()) + 1, tuple(output_slices), tuple(carried_slices), tuple(input_slices)
    )


def is_depthwise(module: nn.Module | nn.Parameter) -> bool:
    """Whether a module is a convolution that makes each channel from one of its own."""
    return isinstance(module, _ConvNd) and 1 < module.groups == module.in_channels == module.out_channels


def sizes(module: nn.Module) -> dict[str, int]:
    """Attributes of a module that follow from the shapes of its tensors, which may have become smaller since.

    >>> conv = nn.Conv2d(8, 8, 3, groups=8)
    >>> conv.weight = nn.Parameter(conv.weight[:5])
    >>> sizes(conv)
    {'in_channels': 5, 'out_channels': 5, 'groups': 5}
    """
    if is_depthwise(module):
        assert isinstance(module, _ConvNd)
        return dict.fromkeys(("in_channels", "out_channels", "groups"), len(module.weight))
    if isinstance(module, _ConvNd):
        sides = [int(side) for side in module.weight.shape[:2]]
        made, read = reversed(sides) if isinstance(module, _ConvTransposeNd) else sides
        if isinstance(module, _ConvTransposeNd):
            return {"in_channels": read, "out_channels": made * module.groups}
        return {"in_channels": read * module.groups, "out_channels": made}
    if isinstance(module, nn.Linear):
        return {"in_features": module.weight.shape[1], "out_features": module.weight.shape[0]}
    if isinstance(module, _BatchNorm) and module.weight is not None:
        return {"num_features": len(module.weight)}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": len(module.weight)}
    return {}


def _add(member: Member, output_slices: list[Slice], carried_slices: list[Slice], input_slices: list[Slice]) -> None:
    """Puts the member's tensors where they belong."""
    module = member.module
    if isinstance(module, (_ConvNd, nn.Linear)):
        made, read = (1, 0) if isinstance(module, _ConvTransposeNd) else (0, 1)
        if member.writes:
            output_slices.append(member.at("weight", made))
            output_slices += [member.at("bias", 0)] if module.bias is not None else []
        elif _is_grouped(module):
            assert isinstance(module, _ConvNd)
            first = member.positions < module.in_channels // module.groups
            member = replace(member, positions=member.positions[first], channels=member.channels[first])
            input_slices.append(member.at("weight", read))
        else:
            input_slices.append(member.at("weight", read))
    elif isinstance(module, _BatchNorm) and module.affine:
        output_slices += [member.at("weight", 0), member.at("bias", 0)]
        carried_slices += [
            member.at(name, 0) for name in ("running_mean", "running_var") if getattr(module, name) is not None
        ]
    elif isinstance(module, nn.PReLU):
        carried_slices += [member.at("weight", 0)] if module.num_parameters > 1 else []
    elif isinstance(module, nn.Parameter):
        raise Unfit(
            f"they meet the parameter {member.name!r}, which is no convolution's, linear layer's or batch norm's"
        )
    elif isinstance(module, _NormBase):
        raise Unfit(f"they pass through {member.name!r}, and a {type(module).__name__} is no batch norm with a scale")
    else:
        raise Unfit(f"they pass through {member.name!r}, and a {type(module).__name__} sees all channels at once")


def _is_grouped(module: nn.Module | nn.Parameter) -> bool:
    return isinstance(module, _ConvNd) and module.groups > 1 and not is_depthwise(module)


def _joined(ways: Sequence[Member]) -> list[Member]:
    """Each module and side once, with what every way to it says."""
    joined: dict[tuple[nn.Module | nn.Parameter, bool], Member] = {}
    for way in ways:
        one_sided = not isinstance(way.module, (_ConvNd, nn.Linear)) or is_depthwise(way.module)
        key = (way.module, one_sided or way.writes)
        old = joined.get(key, replace(way, writes=key[1], positions=way.positions[:0], channels=way.channels[:0]))
        positions, channels = torch.cat((old.positions, way.positions)), torch.cat((old.channels, way.channels))
        joined[key] = replace(old, positions=positions, channels=channels)
    return list(joined.values())


def _unique(positions: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in order, each once, and where each is found first."""
    unique, inverse = positions.unique(return_inverse=True)
    first = torch.full((len(unique),), len(positions)).scatter_reduce(0, inverse, torch.arange(len(positions)), "amin")
    return unique, first


def _places(member: Member) -> tuple[Tensor, Tensor]:
    """The channels of a grouped convolution and their places in their groups: those with the same place go together."""
    module = member.module
    assert isinstance(module, _ConvNd)
    width = module.out_channels if member.writes else module.in_channels
    if isinstance(module, _ConvTransposeNd) or not torch.equal(member.positions.unique(), torch.arange(width)):
        raise Unfit(f"they are not all channels of {member.name!r}, which has groups")
    return member.channels, member.positions % (width // module.groups)


def _merged(num_channels: int, ties: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """New numbers for channels, of which those that any tie gives the same label become one.

    >>> _merged(6, [(torch.arange(6), torch.tensor([0, 1, 2, 0, 1, 2]))]).tolist()
    [0, 1, 2, 0, 1, 2]
    """
    number = torch.arange(num_channels)
    while True:
        before = number.clone()
        for channels, labels in ties:
            least = torch.full((int(labels.max()) + 1,), num_channels)
            least = least.scatter_reduce(0, labels, number[channels], "amin")
            number = number.scatter_reduce(0, channels, least[labels], "amin")
        if torch.equal(number, before):
            return number.unique(return_inverse=True)[1]
