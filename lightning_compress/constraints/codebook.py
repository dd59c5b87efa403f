"""Constraint of clustered weights: members of a cluster stay equal."""

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
    """Assignment of the weights of one tensor to clusters.

    Args:
        index: Cluster of each weight, int32 ``(num_weights,)``.
        num_clusters: Number of clusters, empty ones included.
        pins_zero: Keep the centroid of the first cluster at zero.
        free: Mask of the weights that are not assigned yet, bool ``(num_weights,)``; ``None`` if all are assigned.
    """

    def __init__(
        self, index: Tensor, num_clusters: int, *, pins_zero: bool = False, free: Tensor | None = None
    ) -> None:
        self.index = index
        self.num_clusters = num_clusters
        self.pins_zero = pins_zero
        self.free = free
        # Free weights are counted in an extra cluster after the others, which every result drops.
        self._member_of = index if free is None else index.masked_fill(free, num_clusters)
        counts = torch.bincount(self._member_of, minlength=num_clusters + 1)
        self.counts = counts[:-1]
        self._num_each = counts
        position = torch.arange(len(index), device=index.device)
        last = torch.full_like(counts, len(index) - 1)
        self._first = last.scatter_reduce_(0, self._member_of.long(), position, "amin")[:-1]
        # Atomic additions on a GPU depend on the order of threads; sums over a sorted copy are deterministic.
        self._order = self._member_of.argsort(stable=True) if index.is_cuda else None

    def values(self, weight: Tensor) -> Tensor:
        """Return the first member of each cluster ``(num_clusters,)``; repeated averages of equal values drift."""
        values = weight.flatten()[self._first]
        if self.pins_zero:
            values[0] = 0.0
        return values

    def means(self, tensor: Tensor) -> Tensor:
        """Return the mean of each cluster, float64 ``(num_clusters,)``."""
        sums = self._sums(tensor.flatten())
        means = sums / self.counts.clamp(min=1)
        if self.pins_zero:
            means[0] = 0.0
        return means

    def write_(self, tensor: Tensor, values: Tensor) -> None:
        """Write each cluster's value into its members, in place."""
        tensor.copy_(self.written(tensor, values))

    def written(self, tensor: Tensor, values: Tensor) -> Tensor:
        """Return the tensor with each cluster's value in its members."""
        written = values.to(tensor.dtype).index_select(0, self.index)
        if self.free is not None:
            written = torch.where(self.free, tensor.flatten(), written)
        return written.view(tensor.shape)

    def _sums(self, flat: Tensor) -> Tensor:
        if self._order is None:
            return torch.bincount(self._member_of, flat.double(), self.num_clusters + 1)[:-1]
        return torch.segment_reduce(flat.double()[self._order], "sum", lengths=self._num_each, unsafe=True)[:-1]


class CodebookConstraint(Constraint):
    """One assignment per layer, at first none, and the projection of tensors onto equal values within clusters.

    Projecting gradients and weights trains the centroids with the mean gradient of their members.

    Args:
        layers: The constrained weights.

    Attributes:
        assignments: Assignment of each layer, or ``None`` as long as all of its weights are free.

    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.tensor([[1.0, 2.0, 5.0]])))
    >>> constraint = CodebookConstraint([layer])
    >>> index = torch.tensor([0, 0, 1], dtype=torch.int32)
    >>> constraint.replace(0, Assignment(index, 2), torch.tensor([1.5, 5.0]))
    >>> layer.weight
    tensor([[1.5000, 1.5000, 5.0000]])
    """

    def __init__(self, layers: Sequence[Layer]) -> None:
        super().__init__(layers)
        self.assignments: list[Assignment | None] = [None] * len(self.layers)

    @torch.no_grad()
    def replace(self, i: int, assignment: Assignment, values: Tensor) -> None:
        """Replace the assignment of layer ``i`` and write the centroids into its weight."""
        self.assignments[i] = assignment
        assignment.write_(self.layers[i].weight, values)

    @torch.no_grad()
    def project_weights_(self) -> None:
        """Restore equality within clusters, which the rounding of optimizer updates may break."""
        for i, (layer, assignment) in enumerate(zip(self.layers, self.assignments, strict=True)):
            if assignment is not None and i not in self.frozen:
                assignment.write_(layer.weight, assignment.values(layer.weight))

    @torch.no_grad()
    def is_satisfied(self) -> bool:
        """Return True if the members of each cluster are equal."""
        pairs = ((layer.weight, self.assignments[i]) for i, layer in enumerate(self.layers) if i not in self.frozen)
        return all(a is None or torch.equal(a.written(w, a.values(w)), w) for w, a in pairs)

    @torch.no_grad()
    def sum_gradients_(self) -> None:
        """Replace the mean gradient of each cluster by the sum over its members, in place."""
        for i, (layer, assignment) in enumerate(zip(self.layers, self.assignments, strict=True)):
            if assignment is not None and layer.parameter.grad is not None and i not in self.frozen:
                assignment.write_(layer.gradient, assignment.means(layer.gradient) * assignment.counts)

    def state_dict(self) -> dict[str, Any]:
        """Return the assignments by parameter name; layers without one are left out."""
        return {
            layer.name: {
                "index": assignment.index.to(_index_dtype(assignment.num_clusters)).cpu(),
                "num_clusters": assignment.num_clusters,
                "pins_zero": assignment.pins_zero,
                "free": None if assignment.free is None else pack_bits(assignment.free).cpu(),
            }
            for layer, assignment in zip(self.layers, self.assignments, strict=True)
            if assignment is not None
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the assignments that :meth:`state_dict` returned.

        Raises:
            ValueError: If they belong to other weights.
        """
        foreign = sorted(set(state) - {layer.name for layer in self.layers})
        if foreign:
            raise ValueError(f"The checkpoint clusters {foreign[0]!r}: it comes from another model or other targets.")
        self.assignments = [_restored(layer, state.get(layer.name)) for layer in self.layers]
        self.project_weights_()

    def digest(self) -> bytes:
        """Return a hash of assignments and centroids, which is equal on all ranks with the same clusters."""
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


def _index_dtype(num_clusters: int) -> torch.dtype:
    return torch.uint8 if num_clusters <= 2**8 else torch.int32


def _restored(layer: Layer, state: Mapping[str, Any] | None) -> Assignment | None:
    if state is None:
        return None
    index = state["index"]
    if index.shape != (layer.parameter.numel(),):
        raise ValueError(
            f"The checkpoint assigns {len(index)} weights of {layer.name!r} to clusters, and it has "
            f"{layer.parameter.numel()}: load a checkpoint of this model."
        )
    device = layer.parameter.device
    free = None if state["free"] is None else unpack_bits(state["free"], index.shape).to(device)
    return Assignment(index.int().to(device), state["num_clusters"], pins_zero=state["pins_zero"], free=free)
