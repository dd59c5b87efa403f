"""Clusterer: assigns the weights of all layers to clusters by k-means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_compress.clustering.codebook_spec import CodebookSpec, point_masses
from lightning_compress.clustering.layout import Layout
from lightning_compress.clustering.soft_weights import SoftClusters
from lightning_compress.constraints.codebook import Assignment, CodebookConstraint
from lightning_compress.constraints.finite import check_finite
from lightning_compress.constraints.gradient_accumulator import GradientAccumulator
from lightning_compress.constraints.layer import Layer

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
        for i, layer in self._trained():
            zero_mask = _zero_mask(layer, zeros[i])
            initial = initial_centers.get(layer.name, self._present_centers(i, pins_zero=zero_mask is not None))
            index, centers = self._cluster(i, layer.weight, zero_mask, initial)
            free = self._free_mask(i, zero_mask, fraction)
            assignment = Assignment(index, len(centers), pins_zero=zero_mask is not None, free=free)
            self.constraint.replace(i, assignment, centers)

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
        for i, layer in self._trained():
            zero_mask = _zero_mask(layer, zeros[i])
            initial = self._present_centers(i, pins_zero=zero_mask is not None)
            index, centers = self._cluster(i, layer.weight, zero_mask, initial)
            layout = self.specs[i].layout(layer)
            masses = point_masses(layer.weight, zero_mask, self._importance(layer))
            variances = _variances(layout, layer.weight, centers[index].view(layer.shape), masses)
            codebooks = centers[int(zero_mask is not None) :].view(layout.num_codebooks, -1)
            found[layer.name] = SoftClusters(layout, codebooks, variances, masses)
        return found

    def _check_finite(self) -> None:
        layers = [layer for _, layer in self._trained()]
        check_finite(layers, [layer.weight for layer in layers], quantity="weights", purpose="clustered")

    def _trained(self) -> list[tuple[int, Layer]]:
        return [(i, layer) for i, layer in enumerate(self.constraint.layers) if i not in self.constraint.frozen]

    def _free_mask(self, i: int, zero_mask: Tensor | None, fraction: float) -> Tensor | None:
        """True where a weight stays free; the largest are fixed first (Zhou et al. 2017, arXiv:1702.03044)."""
        if fraction >= 1:
            return None
        assignment = self.constraint.assignments[i]
        # Weights that are fixed already, and zeros, get an infinite score: they never become free.
        scores = self.constraint.layers[i].weight.abs().flatten().float()
        if assignment is not None:
            fixed = torch.ones_like(scores, dtype=torch.bool) if assignment.free is None else ~assignment.free
            scores.masked_fill_(fixed, torch.inf)
        num_nonzero = len(scores)
        if zero_mask is not None:
            scores.masked_fill_(zero_mask.flatten(), torch.inf)
            num_nonzero -= int(zero_mask.sum())
        num_free = min(num_nonzero - round(fraction * num_nonzero), int(scores.isfinite().sum()))
        if num_free == 0:
            return None
        # Of weights of equal magnitude the first stay free, so that the number is exact and the same on all ranks.
        largest = scores.kthvalue(num_free).values
        smaller, equal = scores < largest, scores == largest
        return smaller | (equal & (equal.cumsum(0) <= num_free - smaller.sum()))

    def _cluster(
        self, i: int, points: Tensor, zero_mask: Tensor | None, initial: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        layer = self.constraint.layers[i]
        importance = self._importance(layer)
        return self.specs[i].cluster(layer, points, zeros=zero_mask, importance=importance, initial_centers=initial)

    def _present_centers(self, i: int, *, pins_zero: bool) -> Tensor | None:
        """Centers of the present assignment without the pinned zero; ``None`` if their number would change."""
        assignment = self.constraint.assignments[i]
        if assignment is None or assignment.pins_zero != pins_zero:
            return None
        # Means over all members: a cluster with free members only would otherwise have none, and be lost.
        if assignment.free is not None:
            assignment = Assignment(assignment.index, assignment.num_clusters)
        return assignment.means(self.constraint.layers[i].weight)[int(pins_zero) :]

    def _importance(self, layer: Layer) -> Tensor | None:
        """Squared gradients, divided by their mean, plus a floor; ``None`` if there are none."""
        squares = None if self.accumulator is None else self.accumulator.sums.get(layer.name)
        if squares is None:
            return None
        # The floor keeps centers near weights without a gradient so far, too.
        mean = squares.mean()
        return squares / mean + 0.01 if bool(mean > 0) else torch.ones_like(squares)


def _variances(layout: Layout, weight: Tensor, centers: Tensor, masses: Tensor | None) -> Tensor:
    """Variance of the weights of each row about their centers, which is positive."""
    weight = weight if weight.dtype == torch.float64 else weight.float()
    masses = torch.ones_like(weight) if masses is None else masses
    squares = layout.to_rows((weight - centers).square() * masses).sum(dim=1)
    # A row with no more values than clusters has no variance; it is the temperature, by which squares are divided.
    smallest = (weight.square().mean() * 1e-9).clamp(min=_MIN_VARIANCE)
    return (squares / layout.to_rows(masses).sum(dim=1).clamp(min=1e-12)).clamp(min=smallest)


def _squared_gradient(weight: Tensor, gradient: Tensor) -> Tensor:
    return gradient.square()


def _zero_mask(layer: Layer, zeros: Tensor | None) -> Tensor | None:
    """True where a weight stays zero; ``None`` if none does."""
    mask = layer.weight == 0 if zeros is None else zeros
    return mask if bool(mask.any()) else None
