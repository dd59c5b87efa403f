"""Weights that share values: the subspace of weights that are equal within clusters, and the projection onto it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer


class Assignment:
    """Which weights of a tensor are equal.

    Args:
        index: The cluster of each weight, int32, one-dimensional.
        num_clusters: Number of clusters, empty ones included.
        pins_zero: Whether the first cluster is of zeros, which stay.
    """

    def __init__(self, index: Tensor, num_clusters: int, *, pins_zero: bool = False) -> None:
        self.index = index
        self.num_clusters = num_clusters
        self.pins_zero = pins_zero
        self.counts = torch.bincount(index, minlength=num_clusters)
        position = torch.arange(len(index), device=index.device)
        last = torch.full_like(self.counts, len(index) - 1)
        self._first = last.scatter_reduce_(0, index.long(), position, "amin")
        # Additions by atomic operations, as on GPUs, come out differently in each run; those along a sorted row do not.
        self._order = index.argsort(stable=True) if index.is_cuda else None

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
        tensor.copy_(values.to(tensor.dtype).index_select(0, self.index).view(tensor.shape))

    def _sums(self, flat: Tensor) -> Tensor:
        if self._order is None:
            return torch.bincount(self.index, flat.double(), self.num_clusters)
        return torch.segment_reduce(flat.double()[self._order], "sum", lengths=self.counts, unsafe=True)


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
    return Assignment(index.int().to(layer.parameter.device), state["num_clusters"], pins_zero=state["pins_zero"])
