"""Specification of the codebooks of a layer: granularity, size and initialization."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    """One codebook per tensor, per output channel, or per group of output channels.

    Args:
        num_clusters: Entries of a codebook, a pinned zero included.
        granularity: Scope of a codebook: ``"tensor"``, ``"channel"`` (each output channel), or a number of channels.
        vector_size: Number of neighboring weights in one entry (product quantization): 1, 2 or 4.
        init: Initialization of k-means.

    Raises:
        ValueError: If an argument has any other value, or for vectors with a granularity other than ``"tensor"``.
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
        # type() and not isinstance(), as True is an int.
        if group not in ("tensor", "channel") and not (type(group) is int and group > 0):
            raise ValueError(f"granularity={group!r} must be 'tensor', 'channel', or a positive number of channels.")
        if self.vector_size not in (1, 2, 4):
            raise ValueError(f"vector_size={self.vector_size!r} must be 1, 2 or 4 weights.")
        if self.vector_size > 1 and group != "tensor":
            raise ValueError(
                f"vector_size={self.vector_size} supports one codebook per tensor only: set granularity='tensor'."
            )
        if self.init not in ("optimal", "kmeans++", "linear", "density"):
            raise ValueError(f"init={self.init!r} must be 'optimal', 'kmeans++', 'linear' or 'density'.")

    def skip_reason(self, layer: Layer) -> str:
        """Return why clustering a layer is impossible or would save nothing; empty if it is worthwhile."""
        num_weights = layer.shape.numel()
        if num_weights % self.vector_size:
            return f"its {num_weights} weights do not divide into vectors of {self.vector_size}"
        index_bits = math.ceil(math.log2(self.num_clusters)) * num_weights / self.vector_size
        codebook_bits = self.layout(layer).num_codebooks * self.num_clusters * self.vector_size * _FLOAT_BITS
        if index_bits + codebook_bits >= num_weights * _FLOAT_BITS:
            return f"its codebooks would be as large as its {num_weights} weights"
        return ""

    def layout(self, layer: Layer) -> Layout:
        """Return the layout of a layer's weight in rows with a codebook each."""
        return Layout(layer.shape, layer.input_dim, self.granularity)

    def cluster(
        self,
        layout: Layout,
        points: Tensor,
        *,
        zeros: Tensor | None = None,
        importance: Tensor | None = None,
        initial_centers: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Cluster the weights of some layers of the same layout by k-means, each by itself.

        Args:
            layout: Layout of the weights.
            points: Values to cluster, of shape (layers, ...) with the weight's shape.
            zeros: True where a weight stays zero and is excluded, of the same shape.
            importance: Mass of each weight in k-means, of the same shape.
            initial_centers: Initial centers (layers, clusters), from earlier codebooks of the same size.

        Returns:
            The cluster index of each weight within its layer, int32 (layers, weights), and the center of each cluster
            (layers, clusters). With ``zeros``, cluster 0 is the pinned zero.
        """
        num_clusters = self.num_clusters - (zeros is not None)
        masses = point_masses(points, zeros, importance)
        # Zeros that pad the last row must have no mass.
        if masses is None and layout.is_padded:
            masses = torch.ones_like(points)
        rows, row_masses = layout.to_rows(points), None if masses is None else layout.to_rows(masses)
        if self.vector_size > 1:
            parts = [
                self._cluster_vectors(row, _item(row_masses, i), num_clusters, _item(initial_centers, i))
                for i, row in enumerate(rows)
            ]
            centers, assignment = (torch.stack(part) for part in zip(*parts, strict=True))
        else:
            centers, assignment = self._cluster_scalars(rows, row_masses, num_clusters, initial_centers)
        index = layout.from_rows(assignment).flatten(1)
        if zeros is None:
            return index, centers
        pinned = torch.cat([centers.new_zeros(len(centers), 1), centers], dim=1)
        return (index + 1).masked_fill_(zeros.flatten(1), 0), pinned

    def _cluster_scalars(
        self, rows: Tensor, masses: Tensor | None, num_clusters: int, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        num_layers, num_codebooks, _ = rows.shape
        # Training moves centers independently, so they may have lost the ascending order.
        if initial is not None:
            initial = initial.reshape(num_layers * num_codebooks, -1).sort(dim=1).values
        # k-means++ draws random numbers row by row: the draws of a layer must not depend on those before it.
        size = num_codebooks if self.init == "kmeans++" else num_layers * num_codebooks
        parts = [
            cluster_rows(part, num_clusters, weights=part_masses, initial_centers=part_initial, init=self.init)
            for part, part_masses, part_initial in zip(
                rows.flatten(0, 1).split(size),
                _split(None if masses is None else masses.flatten(0, 1), size, num_layers),
                _split(initial, size, num_layers),
                strict=False,
            )
        ]
        codebooks, assignment = (torch.cat(part) for part in zip(*parts, strict=True))
        # Indices are into the concatenation of all codebooks of a layer.
        codebook = torch.arange(num_codebooks, dtype=torch.int32, device=rows.device).unsqueeze(1)
        return codebooks.view(num_layers, -1), assignment.view(rows.shape) + codebook * num_clusters

    def _cluster_vectors(
        self, rows: Tensor, masses: Tensor | None, num_clusters: int, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        size = self.vector_size
        vectors = rows.reshape(-1, size)
        codebook, entry = cluster_vectors(
            vectors,
            min(num_clusters, len(vectors)),
            weights=None if masses is None else masses.reshape(-1, size),
            initial_centers=None if initial is None else initial.reshape(-1, size),
        )
        # Each component of an entry is a cluster of its own: the constraint ties single weights.
        component = torch.arange(size, dtype=torch.int32, device=rows.device)
        return codebook.flatten(), (entry.unsqueeze(1) * size + component).view(rows.shape)


def point_masses(points: Tensor, zeros: Tensor | None, importance: Tensor | None) -> Tensor | None:
    """Return the mass of each point in k-means: its importance, 0 where it stays zero; ``None`` if all are equal.

    >>> point_masses(torch.tensor([1.0, 2.0]), torch.tensor([True, False]), None).tolist()
    [0.0, 1.0]
    """
    if zeros is None and importance is None:
        return None
    masses = torch.ones_like(points) if importance is None else importance.to(points)
    return masses if zeros is None else masses.masked_fill(zeros, 0.0)


def _item(tensor: Tensor | None, i: int) -> Tensor | None:
    return None if tensor is None else tensor[i]


def _split(tensor: Tensor | None, size: int, num_parts: int) -> Sequence[Tensor | None]:
    return [None] * num_parts if tensor is None else tensor.split(size)
