"""A group of channels and the weights they lie in."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.channels.groups import ChannelGroup, Slice
from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.importance import part_of_the_rest

Part = tuple[Layer, Slice]


@dataclass(frozen=True, eq=False)
class RankedChannelGroup:
    """A group of channels with the weights in which they lie; biases make channels, and score nothing.

    Attributes:
        name: Name of the layer or attention module it was found from, as users write it.
        group: The group.
        output_slices: Weights along their output side, scales of batch norms among them.
        input_slices: Weights along their input side.
        masked: Indices in the constraint of all tensors that make the channels, and where the channels lie in each.
    """

    name: str
    group: ChannelGroup
    output_slices: tuple[Part, ...]
    input_slices: tuple[Part, ...]
    masked: tuple[tuple[int, Slice], ...]

    def sums(self, parts: Iterable[Part], importance: Callable[[Layer], Tensor]) -> Tensor:
        """Sums over the entries of each channel, float64 on the CPU.

        Args:
            parts: The weights to sum over.
            importance: A value for each entry of a weight.
        """
        total = torch.zeros(self.group.num_channels, dtype=torch.float64)
        for layer, part in parts:
            values = importance(layer).movedim(part.dim, 0)
            rows = values.reshape(len(values), -1).sum(dim=1, dtype=torch.float64).cpu()
            total.index_add_(0, part.channels, rows[part.positions])
        return total

    @property
    def matrices(self) -> tuple[Part, ...]:
        """Those of the output_slices that are no scales of norms."""
        return tuple((layer, part) for layer, part in self.output_slices if layer.parameter.ndim > 1)

    @property
    def scales(self) -> tuple[Part, ...]:
        """Scales of the batch norms among the output_slices."""
        return tuple((layer, part) for layer, part in self.output_slices if layer.parameter.ndim == 1)

    def relative(self, scores: Tensor) -> Tensor:
        """Scores over the sum of those that are no lower, times the number of channels: groups can be compared.

        The lowest is over the mean of the group, as in DepGraph; the fewer channels are left, the more each is worth,
        as in LAMP. Channels that are gone change nothing for the others.
        """
        return len(scores) * part_of_the_rest(scores)


def couple(
    groups: Sequence[ChannelGroup], parameters: Mapping[str, nn.Parameter], layers: Sequence[Layer], prefix: str
) -> list[RankedChannelGroup]:
    """Groups with their weights.

    Args:
        groups: The groups.
        parameters: The parameters of the network by name.
        layers: The tensors that the constraint holds: all that make channels of the groups.
        prefix: What stands before the network's names in those of the layers.
    """
    index = {layer.name: i for i, layer in enumerate(layers)}

    def weights(parts: Iterable[Slice], *, made: bool) -> tuple[Part, ...]:
        return tuple(
            (Layer(prefix + part.tensor, parameters[part.tensor], 1 - part.dim if made else part.dim), part)
            for part in parts
            if not part.tensor.endswith("bias")
        )

    return [
        RankedChannelGroup(
            (prefix + group.name).replace("_orig_mod.", ""),
            group,
            weights(group.output_slices, made=True),
            weights(group.input_slices, made=False),
            tuple((index[prefix + part.tensor], part) for part in group.output_slices),
        )
        for group in groups
    ]
