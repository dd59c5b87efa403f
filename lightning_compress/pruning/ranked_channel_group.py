"""Channel groups together with the weights by which their channels are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_compress.channels.groups import ChannelGroup, ChannelSlice
from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.importance import lamp_normalize
from lightning_compress.pruning.narrowed_norms import width_factor
from lightning_compress.targets import COMPILED

WeightSlice = tuple[Layer, ChannelSlice]


@dataclass(frozen=True, eq=False)
class RankedChannelGroup:
    """A channel group with the weights that score its channels. Biases are masked, but not scored.

    Attributes:
        name: Name of the root layer or attention module, relative to the LightningModule.
        group: The channel group.
        output_slices: Weights that produce the channels, scales of batch norms included.
        input_slices: Weights that consume the channels.
        mask_slices: Index in the constraint and slice of each tensor that produces the channels, biases included.
    """

    name: str
    group: ChannelGroup
    output_slices: tuple[WeightSlice, ...]
    input_slices: tuple[WeightSlice, ...]
    mask_slices: tuple[tuple[int, ChannelSlice], ...]

    def sum_per_channel(self, slices: Iterable[WeightSlice], importance: Callable[[Layer], Tensor]) -> Tensor:
        """Sum values over all entries of each channel; a collective if the weights are sharded.

        Args:
            slices: Weights to sum over.
            importance: Maps a layer to values of the shape of its local weight.

        Returns:
            float64 of shape ``(num_channels,)`` on the CPU.
        """
        total = torch.zeros(self.group.num_channels, dtype=torch.float64)
        for layer, channel_slice in slices:
            values = layer.full(importance(layer)).movedim(channel_slice.dim, 0)
            rows = values.reshape(len(values), -1).sum(dim=1, dtype=torch.float64).cpu()
            total.index_add_(0, channel_slice.channels, rows[channel_slice.positions])
        return total

    @property
    def layer_weights(self) -> tuple[WeightSlice, ...]:
        """Output slices of convolutions and linear layers."""
        return tuple(item for item in self.output_slices if item[0].parameter.ndim > 1)

    @property
    def norm_scales(self) -> tuple[WeightSlice, ...]:
        """Output slices of batch norms."""
        return tuple(item for item in self.output_slices if item[0].parameter.ndim == 1)

    def normalize(self, scores: Tensor) -> Tensor:
        """Normalize scores so that they can be compared between groups.

        Each score is divided by the sum of the scores that are no smaller, as in LAMP, and multiplied by the number of
        channels. The lowest score is thereby divided by the mean of the group, as in DepGraph; scores grow as channels
        are removed, and removed channels do not change the scores of others. Channels that norms normalize over count
        in proportion to the root of the number of layers that they are part of. Blocks get the mean of their weights.

        Args:
            scores: Nonnegative, float64 of shape ``(num_channels,)``.
        """
        if self.group.blocks:
            return scores / self.sum_per_channel(self.output_slices, lambda layer: torch.ones_like(layer.weight))
        return width_factor(self.group) * len(scores) * lamp_normalize(scores)


def attach_weights(
    groups: Sequence[ChannelGroup], parameters: Mapping[str, nn.Parameter], layers: Sequence[Layer], prefix: str
) -> list[RankedChannelGroup]:
    """Attach its weights to each channel group.

    Args:
        groups: The groups.
        parameters: Parameters of the traced module by name.
        layers: Tensors that the constraint masks: all that produce channels of the groups.
        prefix: Prefix of the traced module in the names of the layers, such as ``"net."``.
    """
    index = {layer.name: i for i, layer in enumerate(layers)}

    def weights(slices: Iterable[ChannelSlice], *, is_output: bool) -> tuple[WeightSlice, ...]:
        return tuple(
            (Layer(prefix + item.tensor, parameters[item.tensor], 1 - item.dim if is_output else item.dim), item)
            for item in slices
            if not item.tensor.endswith("bias")
        )

    return [
        RankedChannelGroup(
            (prefix + group.name).replace(COMPILED, ""),
            group,
            weights(group.output_slices, is_output=True),
            weights(group.input_slices, is_output=False),
            tuple((index[prefix + item.tensor], item) for item in group.output_slices),
        )
        for group in groups
    ]
