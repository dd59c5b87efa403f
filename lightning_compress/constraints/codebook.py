"""Constraint of clustered weights: members of a cluster stay equal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_compress.constraints.assignment import Assignment, add_over_ranks
from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer, group_of, local_shards
from lightning_compress.constraints.layer_batches import any_true
from lightning_compress.functional.masks import pack_bits, unpack_bits


class CodebookConstraint(Constraint):
    """One assignment per layer, at first none, and the projection of tensors onto equal values within clusters.

    Projecting gradients and weights trains the centroids with the mean gradient of their members.

    Args:
        layers: The constrained weights.

    Attributes:
        assignments: Assignment of each layer (of this rank's shard), or ``None`` as long as all weights are free.

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
        weights = local_shards([self._parameters[i] for i in batch])
        stacked = self._buffers.stack(weights)
        self.joint(batch).write_(stacked, values.flatten())
        self._buffers.unstack_(weights, stacked)

    @torch.no_grad()
    def project_weights_(self) -> None:
        """Restore equality within clusters, which the rounding of optimizer updates may break."""
        self._write_(self._trained_weights(), Assignment.first_members, Assignment.values_of)

    @torch.no_grad()
    def is_satisfied(self) -> bool:
        """Return True if the members of each cluster are equal on this rank; a collective if sharded."""
        weights = self._trained_weights()
        # All before any is compared: no rank may leave out a collective.
        first = self._over_ranks(weights, Assignment.first_members)
        return not any_true(
            [
                (joint.written(w, joint.values_of(values)) != w).any()
                for values, (batch, joint) in zip(first, self._assigned_batches(weights), strict=True)
                for w in [self._stacked(weights, batch)]
            ]
        )

    @torch.no_grad()
    def sum_gradients_(self) -> None:
        """Replace the mean gradient of each cluster by the sum over its members, in place."""
        gradients = {i: p.grad for i, p in enumerate(self._parameters) if p.grad is not None and i not in self.frozen}
        self._write_(gradients, Assignment.sums, lambda joint, sums: joint.means_of(sums) * joint.counts)

    def joint(self, members: Sequence[int]) -> Assignment:
        """Return one assignment of the weights of some layers, all of which have an assignment."""
        kept = self._joint.get(members[0])
        if kept is None or kept[0] != members:
            assignments = [assignment for i in members if (assignment := self.assignments[i]) is not None]
            kept = list(members), Assignment.join(assignments)
            self._joint[members[0]] = kept
        return kept[1]

    def state_dict(self) -> dict[str, Any]:
        """Return the assignments of full weights by parameter name; layers without one are left out."""
        return {
            layer.name: {
                "index": layer.full_vector(assignment.index.to(_index_dtype(assignment.num_clusters))).cpu(),
                "num_clusters": assignment.num_clusters,
                "pins_zero": assignment.pins_zero,
                "free": None if assignment.free is None else pack_bits(layer.full_vector(assignment.free)).cpu(),
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
            values = joint.values(self._stacked(weights, batch))
            digest.update(values.double().cpu().numpy().tobytes())
        return digest.digest()

    @torch.no_grad()
    def _project_(self, tensors: Mapping[int, Tensor]) -> None:
        self._write_(tensors, Assignment.sums, Assignment.means_of)

    def _write_(
        self,
        tensors: Mapping[int, Tensor],
        summands: Callable[[Assignment, Tensor], Tensor],
        values: Callable[[Assignment, Tensor], Tensor],
    ) -> None:
        """Write values of clusters, computed from sums over ranks for a stack of tensors, into their members."""
        totals = self._over_ranks(tensors, summands) if self._group is not None else None
        for i, (batch, joint) in enumerate(self._assigned_batches(tensors)):
            members = local_shards([tensors[j] for j in batch])
            stacked = self._buffers.stack(members)
            joint.write_(stacked, values(joint, summands(joint, stacked) if totals is None else totals[i]))
            self._buffers.unstack_(members, stacked)

    def _over_ranks(
        self, tensors: Mapping[int, Tensor], summands: Callable[[Assignment, Tensor], Tensor]
    ) -> Sequence[Tensor]:
        """Return a vector for each batch with an assignment; those of shards are summed by one collective."""
        batches = list(self._assigned_batches(tensors))
        vectors = [summands(joint, self._stacked(tensors, batch)) for batch, joint in batches]
        sharded = [i for i, (_, joint) in enumerate(batches) if joint.group is not None]
        totals = add_over_ranks([vectors[i] for i in sharded], self._group)
        found = dict(zip(sharded, totals, strict=True))
        return [found.get(i, vector) for i, vector in enumerate(vectors)]

    def _stacked(self, tensors: Mapping[int, Tensor], batch: Sequence[int]) -> Tensor:
        return self._buffers.stack(local_shards([tensors[i].detach() for i in batch]))

    def _trained_weights(self) -> dict[int, Tensor]:
        return {i: p for i, p in enumerate(self._parameters) if i not in self.frozen}

    @cached_property
    def _group(self) -> dist.ProcessGroup | None:
        return group_of(self.layers)

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
    free = None if state["free"] is None else layer.local_vector(unpack_bits(state["free"], index.shape))
    return Assignment(
        layer.local_vector(index.int()),
        state["num_clusters"],
        pins_zero=state["pins_zero"],
        free=free,
        group=layer.group,
    )
