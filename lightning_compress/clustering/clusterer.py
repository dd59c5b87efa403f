"""Clusterer: assigns the weights of all layers to clusters by k-means."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_compress.clustering.codebook_spec import CodebookSpec, point_masses
from lightning_compress.clustering.layout import Layout
from lightning_compress.clustering.soft_weights import SoftClusters
from lightning_compress.constraints.assignment import Assignment
from lightning_compress.constraints.codebook import CodebookConstraint
from lightning_compress.constraints.finite import check_finite
from lightning_compress.constraints.gradient_accumulator import GradientAccumulator
from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.layer_batches import stack, stack_full_weights, stack_weights

# Squared distances of weights below 1e7, divided by a thousandth of it, are finite in float32.
_MIN_VARIANCE = 1e-20


class Clusterer:
    """Updates the assignments of a codebook constraint.

    Args:
        constraint: The constraint, with its layers.
        specs: Specification of the codebooks of each layer.
        weighted: If True, the mass of a weight in k-means is its accumulated squared gradient, the diagonal of the
            Fisher information (Choi et al. 2017, arXiv:1612.01543).

    Attributes:
        accumulator: Sums of squared gradients; ``None`` if the clustering is not weighted.
    """

    def __init__(
        self, constraint: CodebookConstraint, specs: Sequence[CodebookSpec], *, weighted: bool = False
    ) -> None:
        self.constraint = constraint
        self.specs = list(specs)
        self.accumulator = GradientAccumulator(_squared_gradient) if weighted else None

    @property
    def is_ready(self) -> bool:
        """Return True if weights can be clustered: a weighted clustering needs at least one completed step."""
        return self.accumulator is None or bool(self.accumulator.sums)

    @torch.no_grad()
    def update(
        self,
        zeros: Sequence[Tensor | None],
        *,
        fraction: float = 1.0,
        initial_centers: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Cluster the weights of all layers anew, and fix a fraction of them to their clusters.

        Args:
            zeros: For each layer, True where a weight stays zero; ``None`` for the weights that are zero now.
            fraction: Fraction of the nonzero weights that is fixed, in [0, 1]; weights that are fixed already stay so.
            initial_centers: Initial centers by the names of the weights; by default those of the present assignment.

        Raises:
            ValueError: If a weight is not finite.
        """
        self._check_finite()
        for batch in self._batches(zeros, initial_centers):
            index, centers = self._cluster(batch, self._initial_centers(batch, initial_centers))
            free = self._free_masks(batch, fraction)
            assignments = [
                Assignment(
                    layer.local_vector(row),
                    centers.shape[1],
                    pins_zero=batch.zeros is not None,
                    free=None if free_row is None else layer.local_vector(free_row),
                    group=layer.group,
                )
                for layer, row, free_row in zip(self._layers(batch), index.unbind(), free, strict=True)
            ]
            self.constraint.replace_batch(batch.indices, assignments, centers)

    @torch.no_grad()
    def soft_clusters(self, zeros: Sequence[Tensor | None]) -> dict[str, SoftClusters]:
        """Return soft clusters, by the names of the weights, that are initialized by clustering the weights.

        Args:
            zeros: As in :meth:`update`.

        Raises:
            ValueError: If a weight is not finite.
        """
        self._check_finite()
        found = {}
        for batch in self._batches(zeros):
            index, centers = self._cluster(batch, self._initial_centers(batch, {}))
            masses = point_masses(batch.weight, batch.zeros, batch.importance)
            written = centers.gather(1, index.long()).view(batch.weight.shape)
            variances = _variances(batch.layout, batch.weight, written, masses)
            codebooks = centers[:, int(batch.zeros is not None) :].unflatten(1, (batch.layout.num_codebooks, -1))
            for j, i in enumerate(batch.indices):
                # Copies, as a view would keep the whole batch.
                own_masses = None if masses is None else masses[j].clone()
                name = self.constraint.layers[i].name
                found[name] = SoftClusters(batch.layout, codebooks[j].clone(), variances[j].clone(), own_masses)
        return found

    def _check_finite(self) -> None:
        layers, batches = self.constraint.layers, list(self.constraint.trained_batches())
        stacks = (stack_weights([layers[i] for i in batch]) for batch in batches)
        check_finite(layers, batches, stacks, quantity="weights", purpose="clustered")

    def _batches(
        self, zeros: Sequence[Tensor | None], initial_centers: Mapping[str, Tensor] = MappingProxyType({})
    ) -> Iterator[_Batch]:
        """Yield trained layers that are clustered in the same way."""
        layers = self.constraint.layers
        sums = {} if self.accumulator is None else self.accumulator.sums
        for members in self.constraint.trained_batches():
            # One batch at a time is gathered where weights are sharded, and clustered in the same way on all ranks.
            weight = stack_full_weights([layers[i] for i in members])
            masks = _zero_masks(weight, [_full(layers[i], zeros[i]) for i in members])
            pins_zero = masks.flatten(1).any(dim=1).tolist()
            alike: dict[Hashable, list[int]] = {}
            for j, i in enumerate(members):
                name, assignment = layers[i].name, self.constraint.assignments[i]
                before = None if assignment is None else (assignment.pins_zero, assignment.num_clusters)
                kind = (id(self.specs[i]), pins_zero[j], before, name in initial_centers, name in sums)
                alike.setdefault(kind, []).append(j)
            for rows in alike.values():
                indices = [members[j] for j in rows]
                spec, names = self.specs[indices[0]], [layers[i].name for i in indices]
                yield _Batch(
                    indices,
                    spec,
                    spec.layout(layers[indices[0]]),
                    weight if len(rows) == len(members) else weight[rows],
                    (masks if len(rows) == len(members) else masks[rows]) if pins_zero[rows[0]] else None,
                    _importance(stack([layers[i].full(sums[layers[i].name]) for i in indices]))
                    if names[0] in sums
                    else None,
                )

    def _cluster(self, batch: _Batch, initial: Tensor | None) -> tuple[Tensor, Tensor]:
        return batch.spec.cluster(
            batch.layout, batch.weight, zeros=batch.zeros, importance=batch.importance, initial_centers=initial
        )

    def _initial_centers(self, batch: _Batch, given: Mapping[str, Tensor]) -> Tensor | None:
        """Given centers, or those of the present assignment; ``None`` if there are none or their number would change.

        A pinned zero is left out.
        """
        names = [self.constraint.layers[i].name for i in batch.indices]
        if names[0] in given:
            return stack([given[name].flatten() for name in names])
        assignment = self.constraint.assignments[batch.indices[0]]
        pins_zero = batch.zeros is not None
        if assignment is None or assignment.pins_zero != pins_zero:
            return None
        # Means over all members: a cluster with free members only would otherwise have none, and be lost.
        joint = self.constraint.joint(batch.indices)
        if joint.free is not None:
            joint = Assignment(joint.index, joint.num_clusters, group=joint.group)
        return joint.means(stack_weights(self._layers(batch))).view(len(names), -1)[:, int(pins_zero) :]

    def _layers(self, batch: _Batch) -> list[Layer]:
        return [self.constraint.layers[i] for i in batch.indices]

    def _assignments(self, batch: _Batch) -> list[Assignment]:
        """Return the present assignments of the layers: of all of them, or of none."""
        return [a for i in batch.indices if (a := self.constraint.assignments[i]) is not None]

    def _free_masks(self, batch: _Batch, fraction: float) -> Sequence[Tensor | None]:
        """True where a weight stays free; the largest are fixed first (Zhou et al. 2017, arXiv:1702.03044)."""
        if fraction >= 1:
            return [None] * len(batch.indices)
        # Weights that are fixed already, and zeros, get an infinite score: they never become free.
        scores = batch.weight.abs().flatten(1).float()
        none_free = torch.zeros_like(scores[0], dtype=torch.bool)
        assignments = self._assignments(batch)
        if assignments:
            masks = [
                _full_mask(layer, assignment)
                for layer, assignment in zip(self._layers(batch), assignments, strict=True)
            ]
            free = stack([none_free if mask is None else mask for mask in masks])
            scores.masked_fill_(~free, torch.inf)
        num_nonzero = torch.full((len(scores),), scores.shape[1], device=scores.device)
        if batch.zeros is not None:
            zeros = batch.zeros.flatten(1)
            scores.masked_fill_(zeros, torch.inf)
            num_nonzero -= zeros.sum(dim=1)
        num_fixed = (num_nonzero.double() * fraction).round().long()
        num_free = torch.minimum(num_nonzero - num_fixed, scores.isfinite().sum(dim=1)).unsqueeze(1)
        # Of weights of equal magnitude the first stay free, so that the number is exact and the same on all ranks.
        largest = _smallest(scores, num_free)
        smaller, equal = scores < largest, scores == largest
        rank = equal.cumsum(dim=1) + smaller.sum(dim=1, keepdim=True)
        free = (smaller | (equal & (rank <= num_free))) & (num_free > 0)
        has_free = (num_free > 0).flatten().tolist()
        return [row if some else None for row, some in zip(free.unbind(), has_free, strict=True)]


@dataclass(frozen=True)
class _Batch:
    """Layers of equal shape that are clustered in the same way, each by itself.

    Attributes:
        indices: Indices of the layers in the constraint.
        spec: Specification of their codebooks.
        layout: Layout of each weight.
        weight: Their weights, (layers, ...).
        zeros: True where a weight stays zero, (layers, ...); ``None`` if none does.
        importance: Mass of each weight in k-means, (layers, ...); ``None`` if all are equal.
    """

    indices: list[int]
    spec: CodebookSpec
    layout: Layout
    weight: Tensor
    zeros: Tensor | None
    importance: Tensor | None


def _full(layer: Layer, mask: Tensor | None) -> Tensor | None:
    return None if mask is None else layer.full(mask)


def _full_mask(layer: Layer, assignment: Assignment) -> Tensor | None:
    """Return the mask of the free weights of a layer, or ``None`` if there are none on any rank."""
    return None if assignment.free is None else layer.full_vector(assignment.free)


def _zero_masks(weight: Tensor, zeros: Sequence[Tensor | None]) -> Tensor:
    """True where a weight stays zero, (layers, ...): the given masks, or for ``None`` the present zeros."""
    given = [(j, mask) for j, mask in enumerate(zeros) if mask is not None]
    if len(given) == len(zeros):
        return stack([mask for _, mask in given])
    masks = weight == 0
    for j, mask in given:
        masks[j] = mask
    return masks


def _smallest(scores: Tensor, number: Tensor) -> Tensor:
    """Return the k-th smallest score of each row, (rows, 1); for k = 0 any."""
    if len(scores) == 1:
        # A selection is faster than a sort, but takes the same k for all rows.
        return scores.kthvalue(max(1, int(number)), dim=1, keepdim=True).values
    return scores.sort(dim=1).values.gather(1, (number - 1).clamp(min=0))


def _importance(squares: Tensor) -> Tensor:
    """Squared gradients of each layer, divided by their mean, plus a floor."""
    # The floor keeps centers near weights without a gradient so far, too.
    mean = squares.flatten(1).mean(dim=1).view(-1, *[1] * (squares.ndim - 1))
    return torch.where(mean > 0, squares / mean + 0.01, torch.ones_like(squares))


def _variances(layout: Layout, weight: Tensor, centers: Tensor, masses: Tensor | None) -> Tensor:
    """Variance of the weights of each row about their centers, which is positive, (layers, codebooks)."""
    weight = weight if weight.dtype == torch.float64 else weight.float()
    masses = torch.ones_like(weight) if masses is None else masses
    squares = layout.to_rows((weight - centers).square() * masses).sum(dim=2)
    # A row with no more values than clusters has no variance; it is the temperature, by which squares are divided.
    smallest = (weight.square().flatten(1).mean(dim=1, keepdim=True) * 1e-9).clamp(min=_MIN_VARIANCE)
    return torch.maximum(squares / layout.to_rows(masses).sum(dim=2).clamp(min=1e-12), smallest)


def _squared_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.square()
