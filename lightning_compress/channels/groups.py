"""Channel groups: channels that can only be removed together, from all tensors that hold them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_compress.masked_norms import MaskedNorm


@dataclass(frozen=True, eq=False)
class ChannelSlice:
    """Positions of the channels of a group in one tensor.

    Attributes:
        tensor: Name of the parameter or buffer in the state dict.
        dim: Dimension that indexes the channels.
        positions: Indices along ``dim``, int64 of shape ``(num_positions,)``.
        channels: Channel of the group at each position, int64 of shape ``(num_positions,)``.
        is_parameter: False for a buffer.
    """

    tensor: str
    dim: int
    positions: Tensor
    channels: Tensor
    is_parameter: bool = True

    def positions_of(self, selected: Tensor) -> Tensor:
        """Return the positions of the selected channels.

        Args:
            selected: Bool of shape ``(num_channels,)``.
        """
        return self.positions[selected[self.channels]]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that depend on each other: each is removed from all tensors of the group or from none.

    Attributes:
        name: Name of the layer at the root of the group, or of the attention module if the channels are heads.
        num_channels: Number of channels. In a grouped convolution, one channel of each convolution group counts as one.
        output_slices: Tensors that produce the channels: weights along their output dimension, biases, and scales and
            shifts of batch norms. If a channel is zero in all of them, its activations are zero.
        carried_slices: Tensors with entries per channel that have no effect on a zero channel, such as running
            statistics and PReLU slopes.
        input_slices: Weights that consume the channels, along their input dimension.
        attributes_per_channel: Integer attributes that do not follow from any tensor shape, such as
            ``"blocks.0.attn.num_heads"``, and the amount by which each removed channel reduces them.
        norms: LayerNorms and RMSNorms over the channels, by module name; their scales and shifts are among the output
            slices. With masked channels, the model computes the same as without them while the norms have hooks.
        blocks: Names of the residual blocks that the channels are, if they are blocks: all tensors of a block belong to
            its channel, and the block is replaced by the identity.
    """

    name: str
    num_channels: int
    output_slices: tuple[ChannelSlice, ...]
    carried_slices: tuple[ChannelSlice, ...]
    input_slices: tuple[ChannelSlice, ...]
    attributes_per_channel: Mapping[str, int] = field(default_factory=dict)
    norms: Mapping[str, MaskedNorm] = field(default_factory=dict)
    blocks: tuple[str, ...] = ()

    @property
    def slices(self) -> tuple[ChannelSlice, ...]:
        """All slices of the group."""
        return self.output_slices + self.carried_slices + self.input_slices

    def dead(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a mask of the channels that are zero in all output slices.

        Args:
            tensors: Tensors of the model by name.

        Returns:
            Bool of shape ``(num_channels,)`` on the CPU.
        """
        return ~self._nonzero(self.output_slices, tensors)

    def unused(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a mask of the channels that are zero in all input slices, of which each of them has some.

        Args:
            tensors: Tensors of the model by name.

        Returns:
            Bool of shape ``(num_channels,)`` on the CPU; all False for blocks, and for channels that norms normalize
            over, which read each other.
        """
        has_readers = torch.zeros(self.num_channels, dtype=torch.bool)
        for channel_slice in () if self.norms or self.blocks else self.input_slices:
            has_readers[channel_slice.channels] = True
        return has_readers & ~self._nonzero(self.input_slices, tensors)

    def _nonzero(self, slices: Iterable[ChannelSlice], tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a mask of the channels with a nonzero entry in some slice."""
        nonzero = torch.zeros(self.num_channels, dtype=torch.bool)
        for channel_slice in slices:
            tensor = tensors[channel_slice.tensor].detach()
            rows = (tensor != 0).movedim(channel_slice.dim, 0).reshape(tensor.shape[channel_slice.dim], -1)
            found = rows.any(dim=1).cpu()
            nonzero[channel_slice.channels[found[channel_slice.positions]]] = True
        return nonzero

    @torch.no_grad()
    def zero_(self, tensors: Mapping[str, Tensor], selected: Tensor) -> None:
        """Set the selected channels to zero in all output slices, in place.

        Args:
            tensors: Tensors of the model by name.
            selected: Bool of shape ``(num_channels,)``.
        """
        for channel_slice in self.output_slices:
            tensor = tensors[channel_slice.tensor]
            tensor.index_fill_(channel_slice.dim, channel_slice.positions_of(selected).to(tensor.device), 0.0)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by name, shared ones under each of their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def first_names(model: nn.Module) -> dict[str, str]:
    """Map every name of a tensor to the name under which ``named_parameters`` or ``named_buffers`` lists it."""
    first: dict[int, str] = {}
    return {name: first.setdefault(id(tensor), name) for name, tensor in named_tensors(model).items()}
