"""Channels that can only go together, in all tensors that make, carry or read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Slice:
    """Where the channels of a group lie in one tensor.

    Attributes:
        tensor: Name of the parameter or buffer, as the state dict spells it.
        dim: The dimension along which they lie.
        positions: Positions along it, int64.
        channels: The channel of each position, int64.
    """

    tensor: str
    dim: int
    positions: Tensor
    channels: Tensor

    def of(self, chosen: Tensor) -> Tensor:
        """Positions of the chosen channels, of which ``chosen`` (bool) has one entry each."""
        return self.positions[chosen[self.channels]]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels of a network that go together: where one goes, it goes from every tensor of the group.

    Attributes:
        name: Name of the layer the group was found from, or of the attention module whose heads are the channels.
        num_channels: Number of channels. Of a grouped convolution, one channel in each of its groups counts as one.
        output_slices: Tensors that make them: weights along their output side, biases, scales and shifts of batch norms.
            Where a channel is zero in all of these, no other layer sees anything but zeros of it.
        carried_slices: Tensors with entries of each channel that do not matter then: running statistics, slopes.
        input_slices: Weights along whose input side the channels lie.
        counts: By how much attributes that no shape tells, such as ``"blocks.0.attn.num_heads"``, shrink with each
            channel.
    """

    name: str
    num_channels: int
    output_slices: tuple[Slice, ...]
    carried_slices: tuple[Slice, ...]
    input_slices: tuple[Slice, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def slices(self) -> tuple[Slice, ...]:
        """Everywhere a channel is removed."""
        return self.output_slices + self.carried_slices + self.input_slices

    def renamed(self, names: Mapping[str, str]) -> ChannelGroup:
        """The group with tensors under other names."""
        output_slices, carried_slices, input_slices = (
            tuple(replace(part, tensor=names[part.tensor]) for part in parts)
            for parts in (self.output_slices, self.carried_slices, self.input_slices)
        )
        return replace(self, output_slices=output_slices, carried_slices=carried_slices, input_slices=input_slices)

    def dead(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Which channels are zero in all their output_slices, one bool each, on the CPU.

        Args:
            tensors: The network's tensors by name.
        """
        alive = torch.zeros(self.num_channels, dtype=torch.bool)
        for part in self.output_slices:
            tensor = tensors[part.tensor].detach()
            nonzero = (tensor != 0).movedim(part.dim, 0).reshape(tensor.shape[part.dim], -1).any(dim=1).cpu()
            alive[part.channels[nonzero[part.positions]]] = True
        return ~alive

    @torch.no_grad()
    def zero_(self, tensors: Mapping[str, Tensor], chosen: Tensor) -> None:
        """Writes zeros into the output_slices of the chosen channels."""
        for part in self.output_slices:
            tensor = tensors[part.tensor]
            tensor.index_fill_(part.dim, part.of(chosen).to(tensor.device), 0.0)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, shared ones under each of their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def first_names(model: nn.Module) -> dict[str, str]:
    """The name under which ``named_parameters`` and ``named_buffers`` list a tensor, for each name that it has."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model).items()}
