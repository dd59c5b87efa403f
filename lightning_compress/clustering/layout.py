"""Which weights of a tensor have a codebook of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Granularity = Literal["tensor", "channel"] | int
"""What a codebook is for: a tensor, an output channel, or a number of them."""


@dataclass(frozen=True)
class Layout:
    """Weights as rows, one for each codebook.

    Attributes:
        shape: Of the weight.
        input_dim: The dimension that runs over input channels.
        granularity: What a codebook is for.
    """

    shape: torch.Size
    input_dim: int
    granularity: Granularity

    @property
    def num_codebooks(self) -> int:
        """Number of codebooks."""
        return -(-self._num_channels // self._channels_a_row)

    @property
    def is_padded(self) -> bool:
        """Whether the last row has fewer weights than the others."""
        return self._num_channels % self._channels_a_row > 0

    def rows(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape, shape (codebooks, weights); the last row is filled up with zeros."""
        channels = self._channels_first(weight).flatten(1)
        if self.is_padded:
            channels = torch.nn.functional.pad(channels, (0, 0, 0, -self._num_channels % self._channels_a_row))
        return channels.reshape(self.num_codebooks, -1)

    def weight(self, rows: Tensor) -> Tensor:
        """The tensor of the weight's shape that :meth:`rows` has made rows of."""
        shape = list(self.shape)
        if self.input_dim == 0:
            shape[:2] = shape[1::-1]
        return self._channels_first(rows.flatten()[: self.shape.numel()].view(shape))

    @property
    def _num_channels(self) -> int:
        return self.shape[1 - self.input_dim]

    @property
    def _channels_a_row(self) -> int:
        match self.granularity:
            case "tensor":
                return self._num_channels
            case "channel":
                return 1
            case number:
                return int(number)

    def _channels_first(self, tensor: Tensor) -> Tensor:
        """Output channels before input channels, or back again."""
        return tensor.transpose(0, 1) if self.input_dim == 0 else tensor
