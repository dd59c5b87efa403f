"""Constraint of clustered weights: members of a cluster stay equal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.layer_batches import stack
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

    @classmethod
    def join(cls, parts: Sequence[Assignment]) -> Assignment:
        """Return one assignment of the weights of several tensors, each to clusters of its own.

        >>> parts = [Assignment(torch.tensor([0, 1]), 2), Assignment(torch.tensor([1, 0]), 2)]
        >>> Assignment.join(parts).index.tolist()
        [0, 1, 3, 2]
        """
        if len(parts) == 1:
            return parts[0]
        sizes = [part.index.numel() for part in parts]
        device = parts[0].index.device
        ends = torch.tensor([part.num_clusters for part in parts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        offsets = starts.repeat_interleave(torch.tensor(sizes)).to(device)
        free = None
        if any(part.free is not None for part in parts):
            masks = (torch.zeros_like(p.index, dtype=torch.bool) if p.free is None else p.free for p in parts)
            free = torch.cat(list(masks))
        joint = cls(torch.cat([part.index for part in parts]) + offsets, int(ends[-1]), free=free)
        joint._pinned = starts[torch.tensor([part.pins_zero for part in parts])].long().to(device)
        return joint

    # Only what is asked for is computed: of many small tensors, only the joint assignment is asked.

    @cached_property
    def counts(self) -> Tensor:
        """Number of weights in each cluster, ``(num_clusters,)``."""
        return self._num_each[:-1]

    @cached_property
    def _pinned(self) -> Tensor:
        """Clusters with a centroid of zero."""
        return torch.zeros(int(self.pins_zero), dtype=torch.long, device=self.index.device)

    @cached_property
    def _member_of(self) -> Tensor:
        # Free weights are counted in an extra cluster after the others, which every result drops.
        return self.index if self.free is None else self.index.masked_fill(self.free, self.num_clusters)

    @cached_property
    def _num_each(self) -> Tensor:
        return torch.bincount(self._member_of, minlength=self.num_clusters + 1)

    @cached_property
    def _first(self) -> Tensor:
        position = torch.arange(len(self.index), device=self.index.device)
        last = torch.full_like(self._num_each, len(self.index) - 1)
        return last.scatter_reduce_(0, self._member_of.long(), position, "amin")[:-1]

    @cached_property
    def _order(self) -> Tensor | None:
        # Atomic additions on a GPU depend on the order of threads; sums over a sorted copy are deterministic.
        return self._member_of.argsort(stable=True) if self.index.is_cuda else None

    def values(self, weight: Tensor) -> Tensor:
        """Return the first member of each cluster ``(num_clusters,)``; repeated averages of equal values drift."""
        return weight.flatten()[self._first].index_fill_(0, self._pinned, 0.0)

    def means(self, tensor: Tensor) -> Tensor:
        """Return the mean of each cluster, float64 ``(num_clusters,)``."""
        means = self._sums(tensor.flatten()) / self.counts.clamp(min=1)
        return means.index_fill_(0, self._pinned, 0.0)

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
        self._joint: dict[int, tuple[list[int], Assignment]] = {}  # by the first layer of a batch

    def replace(self, i: int, assignment: Assignment, values: Tensor) -> None:
        """Replace the assignment of layer ``i`` and write the centroids into its weight."""
        self.replace_batch([i], [assignment], values)

    @torch.no_grad()
    def replace_batch(self, batch: Sequence[int], assignments: Sequence[Assignment], values: Tensor) -> None:
        """Replace the assignments of layers of equal shape and write the centroids into their weights.

        Args:
            batch: Indices of the layers.
            assignments: Assignment of each.
            values: Centroids of all clusters, layer by layer.
        """
        replaced = set(batch)
        self._joint = {i: kept for i, kept in self._joint.items() if replaced.isdisjoint(kept[0])}
        for i, assignment in zip(batch, assignments, strict=True):
            self.assignments[i] = assignment
        weights = [self._parameters[i] for i in batch]
        stacked = self._buffers.stack(weights)
        self.joint(batch).write_(stacked, values.flatten())
        self._buffers.unstack_(weights, stacked)

    @torch.no_grad()
    def project_weights_(self) -> None:
        """Restore equality within clusters, which the rounding of optimizer updates may break."""
        weights = {i: p for i, p in enumerate(self._parameters) if i not in self.frozen}
        self._write_(weights, lambda assignment, weight: assignment.values(weight))

    @torch.no_grad()
    def is_satisfied(self) -> bool:
        """Return True if the members of each cluster are equal."""
        weights = {i: p for i, p in enumerate(self._parameters) if i not in self.frozen}
        pairs = ((stack([weights[i] for i in batch]), joint) for batch, joint in self._assigned_batches(weights))
        return all(torch.equal(joint.written(w, joint.values(w)), w) for w, joint in pairs)

    @torch.no_grad()
    def sum_gradients_(self) -> None:
        """Replace the mean gradient of each cluster by the sum over its members, in place."""
        gradients = {i: p.grad for i, p in enumerate(self._parameters) if p.grad is not None and i not in self.frozen}
        self._write_(gradients, lambda assignment, gradient: assignment.means(gradient) * assignment.counts)

    def joint(self, members: Sequence[int]) -> Assignment:
        """Return one assignment of the weights of some layers, all of which have an assignment."""
        kept = self._joint.get(members[0])
        if kept is None or kept[0] != members:
            assignments = [assignment for i in members if (assignment := self.assignments[i]) is not None]
            kept = list(members), Assignment.join(assignments)
            self._joint[members[0]] = kept
        return kept[1]

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
        self._joint = {}
        self.project_weights_()

    def digest(self) -> bytes:
        """Return a hash of assignments and centroids, which is equal on all ranks with the same clusters."""
        digest = hashlib.blake2b(digest_size=8)
        weights = dict(enumerate(self._parameters))
        for batch, joint in self._assigned_batches(weights):
            digest.update(joint.index.cpu().numpy().tobytes())
            if joint.free is not None:
                digest.update(pack_bits(joint.free).cpu().numpy().tobytes())
            values = joint.values(stack([weights[i].detach() for i in batch]))
            digest.update(values.double().cpu().numpy().tobytes())
        return digest.digest()

    @torch.no_grad()
    def _project_(self, tensors: Mapping[int, Tensor]) -> None:
        self._write_(tensors, lambda assignment, tensor: assignment.means(tensor))

    def _write_(self, tensors: Mapping[int, Tensor], values: Callable[[Assignment, Tensor], Tensor]) -> None:
        """Write the values of clusters, computed from an assignment and a stack of tensors, into their members."""
        for batch, joint in self._assigned_batches(tensors):
            members = [tensors[i] for i in batch]
            stacked = self._buffers.stack(members)
            joint.write_(stacked, values(joint, stacked))
            self._buffers.unstack_(members, stacked)

    def _assigned_batches(self, tensors: Mapping[int, Tensor]) -> Iterator[tuple[list[int], Assignment]]:
        """Yield batches of the layers with a tensor and an assignment, and the joint assignment of each."""
        for batch in self._batches_of(tensors):
            members = [i for i in batch if self.assignments[i] is not None]
            if members:
                yield members, self.joint(members)


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
