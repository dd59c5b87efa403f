"""Weights that share values: the subspace of weights that are equal within clusters, and the projection onto it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.masks import pack_bits, unpack_bits


class Assignment:
    """Which weights of a tensor are equal.

    Args:
        index: The cluster of each weight, int32, one-dimensional.
        num_clusters: Number of clusters, empty ones included.
        pins_zero: Whether the first cluster is of zeros, which stay.
        free: True where a weight is still free; one-dimensional.
    """

    def __init__(
        self, index: Tensor, num_clusters: int, *, pins_zero: bool = False, free: Tensor | None = None
    ) -> None:
        self.index = index
        self.num_clusters = num_clusters
        self.pins_zero = pins_zero
        self.free = free
        # Free weights count for a cluster behind the others.
        self._member_of = index if free is None else index.masked_fill(free, num_clusters)
        counts = torch.bincount(self._member_of, minlength=num_clusters + 1)
        self.counts = counts[:-1]
        self._num_each = counts
        position = torch.arange(len(index), device=index.device)
        last = torch.full_like(counts, len(index) - 1)
        self._first = last.scatter_reduce_(0, self._member_of.long(), position, "amin")[:-1]
        # Additions by atomic operations, as on GPUs, come out differently in each run; those along a sorted row do not.
        self._order = self._member_of.argsort(stable=True) if index.is_cuda else None

    def values(self, weight: Tensor) -> Tensor:
        """The value of each cluster, that of its first member: where all are equal, nothing changes to the last bit."""
        values = weight.flatten()[self._first]
        if self.pins_zero:
            values[0] = 0.0
        return values

    def means(self, tensor: Tensor) -> Tensor:
        """The mean of each cluster, in double precision."""
        sums = self._sums(tensor.flatten())
        means = sums / self.counts.clamp(min=1)
        if self.pins_zero:
            means[0] = 0.0
        return means

    def write_(self, tensor: Tensor, values: Tensor) -> None:
        """Writes each cluster's value into its members."""
        written = values.to(tensor.dtype).index_select(0, self.index)
        if self.free is not None:
            written = torch.where(self.free, tensor.flatten(), written)
        tensor.copy_(written.view(tensor.shape))

    def _sums(self, flat: Tensor) -> Tensor:
        if self._order is None:
            return torch.bincount(self._member_of, flat.double(), self.num_clusters + 1)[:-1]
        return torch.segment_reduce(flat.double()[self._order], "sum", lengths=self._num_each, unsafe=True)[:-1]


class CodebookConstraint(Constraint):
    """Holds one assignment per layer, at first none, and projects tensors onto equal values within clusters.

    Projecting gradients and weights trains the centroids with the mean gradient of their members.

    Args:
        layers: The constrained weights.

    Attributes:
        assignments: By layer; ``None`` as long as its weights are free.
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self.assignments: list[Assignment | None] = [None] * len(self.layers)

    @torch.no_grad()
    def replace(self, i: int, assignment: Assignment, values: Tensor) -> None:
        """Takes a new assignment for a layer and writes the clusters' values into its weight."""
        self.assignments[i] = assignment
        assignment.write_(self.layers[i].weight, values)

    @torch.no_grad()
    def project_weights_(self) -> None:
        """Restores equality, of which rounding may have taken a little."""
        for layer, assignment in zip(self.layers, self.assignments, strict=True):
            if assignment is not None:
                assignment.write_(layer.weight, assignment.values(layer.weight))

    @torch.no_grad()
    def sum_gradients_(self) -> None:
        """Gives each weight the sum of its cluster's gradients, instead of their mean."""
        for layer, assignment in zip(self.layers, self.assignments, strict=True):
            if assignment is not None and layer.parameter.grad is not None:
                assignment.write_(layer.gradient, assignment.means(layer.gradient) * assignment.counts)

    def state_dict(self) -> dict[str, Any]:
        """Assignments by the names of the weights; free layers are not there."""
        return {
            layer.name: {
                "index": assignment.index.to(_smallest(assignment.num_clusters)).cpu(),
                "num_clusters": assignment.num_clusters,
                "pins_zero": assignment.pins_zero,
                "free": None if assignment.free is None else pack_bits(assignment.free).cpu(),
            }
            for layer, assignment in zip(self.layers, self.assignments, strict=True)
            if assignment is not None
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes the assignments of :meth:`state_dict`, for weights that have them.

        Raises:
            ValueError: If they are of other weights than these.
        """
        foreign = sorted(set(state) - {layer.name for layer in self.layers})
        if foreign:
            raise ValueError(f"The checkpoint clusters {foreign[0]!r}: it comes from another model or other targets.")
        self.assignments = [_restored(layer, state.get(layer.name)) for layer in self.layers]
        self.project_weights_()

    def digest(self) -> bytes:
        """A hash of assignments and values, equal on all ranks that decided alike."""
        digest = hashlib.blake2b(digest_size=8)
        for layer, assignment in zip(self.layers, self.assignments, strict=True):
            if assignment is not None:
                digest.update(assignment.index.cpu().numpy().tobytes())
                if assignment.free is not None:
                    digest.update(pack_bits(assignment.free).cpu().numpy().tobytes())
                digest.update(assignment.values(layer.weight).double().cpu().numpy().tobytes())
        return digest.digest()

    @torch.no_grad()
    def _project_(self, tensors: Mapping[int, Tensor]) -> None:
        for i, tensor in tensors.items():
            assignment = self.assignments[i]
            if assignment is not None:
                assignment.write_(tensor, assignment.means(tensor))


def _smallest(num_clusters: int) -> torch.dtype:
    return torch.uint8 if num_clusters <= 2**8 else torch.int32


def _restored(layer: Layer, state: Mapping[str, Any] | None) -> Assignment | None:
    if state is None:
        return None
    index = state["index"]
    if index.shape != (layer.parameter.numel(),):
        raise ValueError(
            f"The checkpoint's clusters of {layer.name!r} are of {len(index)} weights and it has "
            f"{layer.parameter.numel()}: another model's?"
        )
    device = layer.parameter.device
    free = None if state["free"] is None else unpack_bits(state["free"], index.shape).to(device)
    return Assignment(index.int().to(device), state["num_clusters"], pins_zero=state["pins_zero"], free=free)
