"""Layout of a weight tensor as rows, one for each codebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["tensor", "channel"] | int
"""Scope of a codebook: the tensor, each output channel, or groups of this number of output channels."""


@dataclass(frozen=True)
class Layout:
    """Reshapes a weight into rows that have a codebook each, and back.

    Attributes:
        shape: Shape of the weight.
        input_dim: Dimension of the input channels: 1, or 0 for transposed convolutions.
        granularity: Scope of a codebook.

    >>> layout = Layout(torch.Size([2, 3]), 1, "channel")
    >>> layout.to_rows(torch.arange(6).view(2, 3)).tolist()
    [[0, 1, 2], [3, 4, 5]]
    """

    shape: torch.Size
    input_dim: int
    granularity: Granularity

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks."""
        return -(-self._num_channels // self._channels_per_row)

    @property
    def is_padded(self) -> bool:
        """True if the last row has fewer weights than the others and is padded."""
        return self._num_channels % self._channels_per_row > 0

    def to_rows(self, weight: Tensor) -> Tensor:
        """Reshape a tensor of the weight's shape to (codebooks, weights); the last row is padded with zeros.

        Dimensions before those of the weight, of a stack of several, are kept.
        """
        channels = self._swap_channels(weight).flatten(1 - len(self.shape))
        if self.is_padded:
            channels = torch.nn.functional.pad(channels, (0, 0, 0, -self._num_channels % self._channels_per_row))
        return channels.reshape(*channels.shape[:-2], self.num_codebooks, -1)

    def from_rows(self, rows: Tensor) -> Tensor:
        """Reshape rows of :meth:`to_rows` to the weight's shape."""
        shape = list(self.shape)
        if self.input_dim == 0:
            shape[:2] = shape[1::-1]
        return self._swap_channels(rows.flatten(-2)[..., : self.shape.numel()].unflatten(-1, shape))

    @property
    def _num_channels(self) -> int:
        return self.shape[1 - self.input_dim]

    @property
    def _channels_per_row(self) -> int:
        match self.granularity:
            case "tensor":
                return self._num_channels
            case "channel":
                return 1
            case number:
                return int(number)

    def _swap_channels(self, tensor: Tensor) -> Tensor:
        # Transposed convolutions store input channels first. Swapping both dimensions is its own inverse.
        return tensor.transpose(-len(self.shape), 1 - len(self.shape)) if self.input_dim == 0 else tensor
