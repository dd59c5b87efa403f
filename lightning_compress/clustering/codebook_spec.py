"""How the weights of a layer share values, and what that saves."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_compress.clustering.layout import Granularity, Layout
from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.kmeans import Init, cluster_rows
from lightning_compress.functional.vector_kmeans import cluster_vectors

_FLOAT_BITS = 32


@dataclass(frozen=True)
class CodebookSpec:
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
        codebook_bits = self.layout(layer).num_codebooks * self.num_clusters * self.vector_size * _FLOAT_BITS
        if index_bits + codebook_bits >= num_weights * _FLOAT_BITS:
            return f"its codebooks would be as large as its {num_weights} weights"
        return ""

    def layout(self, layer: Layer) -> Layout:
        """Which weights of a layer have a codebook of their own."""
        return Layout(layer.shape, layer.input_dim, self.granularity)

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
            points: QuantizationSpec, of the weight's shape.
            zeros: True where a weight is left out, as it stays zero; of the same shape.
            sensitivity: What each weight counts; of the same shape.
            start: Values of an earlier codebook of as many clusters, to start from.

        Returns:
            The index of each weight, int32, one-dimensional, and the value of each index. If there are zeros, theirs
            is index 0.
        """
        num_clusters = self.num_clusters - (zeros is not None)
        weights = masses_of(points, zeros, sensitivity)
        if self.vector_size > 1:
            values, index = self._cluster_vectors(layer, points, weights, num_clusters, start)
        else:
            values, index = self._cluster_numbers(layer, points, weights, num_clusters, start)
        if zeros is None:
            return index, values
        return (index + 1).masked_fill_(zeros.flatten(), 0), torch.cat([values.new_zeros(1), values])

    def _cluster_numbers(
        self, layer: Layer, points: Tensor, weights: Tensor | None, num_clusters: int, start: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layout = self.layout(layer)
        if weights is None and layout.is_padded:
            weights = torch.ones_like(points)
        rows, masses = layout.rows(points), None if weights is None else layout.rows(weights)
        begin = None if start is None else start.view(len(rows), -1).sort(dim=1).values
        codebooks, assignment = cluster_rows(rows, num_clusters, weights=masses, start=begin, init=self.init)
        codebook = torch.arange(len(rows), dtype=torch.int32, device=points.device).unsqueeze(1)
        return codebooks.flatten(), layout.weight(assignment + codebook * num_clusters).flatten()

    def _cluster_vectors(
        self,
        layer: Layer,
        points: Tensor,
        weights: Tensor | None,
        num_clusters: int,
        start: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        size = self.vector_size
        layout = self.layout(layer)
        vectors = layout.rows(points).view(-1, size)
        masses = None if weights is None else layout.rows(weights).view(-1, size)
        begin = None if start is None else start.view(-1, size)
        num_clusters = min(num_clusters, len(vectors))
        codebook, entry = cluster_vectors(vectors, num_clusters, weights=masses, start=begin)
        place = torch.arange(size, dtype=torch.int32, device=points.device)
        return codebook.flatten(), layout.weight(entry.unsqueeze(1) * size + place).flatten()


def masses_of(points: Tensor, zeros: Tensor | None, sensitivity: Tensor | None) -> Tensor | None:
    """What weights count: their sensitivity, and nothing where they stay zero; ``None`` if all count the same."""
    if zeros is None and sensitivity is None:
        return None
    masses = torch.ones_like(points) if sensitivity is None else sensitivity.to(points)
    return masses if zeros is None else masses.masked_fill(zeros, 0.0)
