"""How the weights of a layer share values, and what that saves."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.clusters import Init, cluster_rows
from lightning_compress.functional.vectors import cluster_vectors

Granularity = Literal["tensor", "channel"] | int
_FLOAT_BITS = 32


@dataclass(frozen=True)
class Sharing:
    """One codebook for a tensor, for each output channel, or for groups of them.

    Args:
        num_clusters: Entries of a codebook, that of zeros included.
        granularity: What a codebook is for: ``"tensor"``, ``"channel"`` (output channels), or a number of channels.
        vector_size: Number of neighbouring weights that an entry stands for.
        init: Where clustering starts.

    Raises:
        ValueError: For what is none of these.
    """

    num_clusters: int
    granularity: Granularity = "tensor"
    vector_size: int = 1
    init: Init = "optimal"

    def __post_init__(self) -> None:
        if not isinstance(self.num_clusters, int) or not 2 <= self.num_clusters <= 2**16:
            raise ValueError(
                f"num_clusters={self.num_clusters!r} must be an int from 2 to 65536, such as 16 for indices of 4 bits."
            )
        group = self.granularity
        if group not in ("tensor", "channel") and not (type(group) is int and group > 0):
            raise ValueError(f"granularity={group!r} is unknown: write 'tensor', 'channel', or a number of channels.")
        if self.vector_size not in (1, 2, 4):
            raise ValueError(f"vector_size={self.vector_size!r} must be 1, 2 or 4 weights.")
        if self.vector_size > 1 and group != "tensor":
            raise ValueError("vector_size above 1 has one codebook a tensor: set granularity='tensor'.")
        if self.init not in ("optimal", "kmeans++", "linear", "density"):
            raise ValueError(f"init={self.init!r} is unknown: write 'optimal', 'kmeans++', 'linear' or 'density'.")

    def obstacle(self, layer: Layer) -> str:
        """Why a layer is better left alone; empty if it is not."""
        num_weights = layer.shape.numel()
        if num_weights % self.vector_size:
            return f"its {num_weights} weights do not divide into vectors of {self.vector_size}"
        index_bits = math.ceil(math.log2(self.num_clusters)) * num_weights / self.vector_size
        codebook_bits = self.num_codebooks(layer) * self.num_clusters * self.vector_size * _FLOAT_BITS
        if index_bits + codebook_bits >= num_weights * _FLOAT_BITS:
            return f"its codebooks would be as large as its {num_weights} weights"
        return ""

    def num_codebooks(self, layer: Layer) -> int:
        """Number of codebooks that a layer has."""
        match self.granularity:
            case "tensor":
                return 1
            case "channel":
                return _num_channels(layer)
            case size:
                return -(-_num_channels(layer) // int(size))

    def cluster(
        self,
        layer: Layer,
        points: Tensor,
        *,
        zeros: Tensor | None = None,
        sensitivity: Tensor | None = None,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Clusters what the weights of a layer may become.

        Args:
            layer: The layer.
            points: Numbers, of the weight's shape.
            zeros: True where a weight is left out, as it stays zero; of the same shape.
            sensitivity: What each weight counts; of the same shape.
            start: Values of an earlier codebook of as many clusters, to start from.

        Returns:
            The index of each weight, int32, one-dimensional, and the value of each index. If there are zeros, theirs
            is index 0.
        """
        num_clusters = self.num_clusters - (zeros is not None)
        weights = _masses(points, zeros, sensitivity)
        if self.vector_size > 1:
            values, index = self._cluster_vectors(layer, points, zeros, weights, num_clusters, start)
        else:
            values, index = self._cluster_numbers(layer, points, weights, num_clusters, start)
        if zeros is None:
            return index, values
        return (index + 1).masked_fill_(zeros.flatten(), 0), torch.cat([values.new_zeros(1), values])

    def _cluster_numbers(
        self, layer: Layer, points: Tensor, weights: Tensor | None, num_clusters: int, start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        rows, masses = self._rows(layer, points), None if weights is None else self._rows(layer, weights)
        padded = rows.numel() > points.numel()
        if padded and masses is None:
            masses = self._rows(layer, torch.ones_like(points))
        begin = None if start is None else start.view(len(rows), -1).sort(dim=1).values
        codebooks, assignment = cluster_rows(rows, num_clusters, weights=masses, start=begin, init=self.init)
        codebook = torch.arange(len(rows), dtype=torch.int32, device=points.device).unsqueeze(1)
        return codebooks.flatten(), self._unrolled(layer, assignment + codebook * num_clusters)

    def _cluster_vectors(
        self,
        layer: Layer,
        points: Tensor,
        zeros: Tensor | None,
        weights: Tensor | None,
        num_clusters: int,
        start: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        size = self.vector_size
        shaped = [None if t is None else self._rows(layer, t).view(-1, size) for t in (points, weights)]
        assert shaped[0] is not None
        begin = None if start is None else start.view(-1, size)
        num_clusters = min(num_clusters, len(shaped[0]))
        codebook, entry = cluster_vectors(shaped[0], num_clusters, weights=shaped[1], start=begin)
        place = torch.arange(size, dtype=torch.int32, device=points.device)
        return codebook.flatten(), self._unrolled(layer, entry.unsqueeze(1) * size + place)

    def _rows(self, layer: Layer, tensor: Tensor) -> Tensor:
        """One row for each codebook, the last one filled up with zeros."""
        channels = _channels_first(layer, tensor).flatten(1)
        match self.granularity:
            case "tensor":
                return channels.reshape(1, -1)
            case "channel":
                return channels
            case size:
                return torch.nn.functional.pad(channels, (0, 0, 0, -len(channels) % int(size))).view(
                    -1, int(size) * channels.shape[1]
                )

    def _unrolled(self, layer: Layer, rows: Tensor) -> Tensor:
        """What :meth:`_rows` has made rows of, one-dimensional, in the order of the weight."""
        shape = _channels_first(layer, layer.weight).shape
        return _channels_first(layer, rows.flatten()[: shape.numel()].view(shape)).flatten()


def _channels_first(layer: Layer, tensor: Tensor) -> Tensor:
    """Output channels before input channels, or back again."""
    return tensor.transpose(0, 1) if layer.input_dim == 0 else tensor


def _num_channels(layer: Layer) -> int:
    return layer.shape[1 - layer.input_dim]


def _masses(points: Tensor, zeros: Tensor | None, sensitivity: Tensor | None) -> Tensor | None:
    if zeros is None and sensitivity is None:
        return None
    masses = torch.ones_like(points) if sensitivity is None else sensitivity.to(points)
    return masses if zeros is None else masses.masked_fill(zeros, 0.0)
