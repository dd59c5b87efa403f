"""Replacing assignments by better ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import torch
from torch import Tensor

from lightning_compress.clustering.codebook_spec import CodebookSpec, masses_of
from lightning_compress.clustering.soft_weights import SoftClusters
from lightning_compress.constraints.codebook import Assignment, CodebookConstraint
from lightning_compress.constraints.layer import Layer


class Clusterer:
    """Updates a codebook constraint.

    Args:
        constraint: Holds the assignments and the layers.
        sharings: How the weights of each layer share values.
        weighted: Whether a weight counts as much as its squared gradients (the diagonal of the Fisher information, as
            in Choi et al. 2017, arXiv:1612.01543).

    Attributes:
        squares: Sums of squared gradients, by the names of the weights.
    """

    def __init__(
        self, constraint: CodebookConstraint, sharings: Sequence[CodebookSpec], *, weighted: bool = False
    ) -> None:
        self.constraint = constraint
        self.sharings = list(sharings)
        self.weighted = weighted
        self.squares: dict[str, Tensor] = {}
        self._pending: dict[str, Tensor] = {}

    @property
    def has_accumulated_scores(self) -> bool:
        """Whether clusters can be looked for now."""
        return not self.weighted or bool(self.squares)

    @torch.no_grad()
    def read_gradients(self, layers: Sequence[Layer], scale: float = 1.0) -> None:
        """Takes in dense gradients, loss scale included, of a step that is about to be made on ``layers``."""
        for layer in layers:
            if layer.parameter.grad is not None:
                self._pending[layer.name] = (layer.gradient.float() / scale).square()

    def step_completed(self, layers: Sequence[Layer]) -> None:
        """Counts the gradients that were read, now that the step has been made."""
        for layer in layers:
            if layer.name in self._pending:
                new, old = self._pending.pop(layer.name), self.squares.get(layer.name)
                self.squares[layer.name] = new if old is None else old.add_(new)

    @torch.no_grad()
    def update(
        self, zeros: Sequence[Tensor | None], *, part: float = 1.0, starts: Mapping[str, Tensor] = MappingProxyType({})
    ) -> None:
        """Clusters the weights of all layers anew, and holds a part of them in their clusters.

        Args:
            zeros: For each layer, True where a weight is to stay zero; ``None``: where it is zero now.
            part: Fraction of the weights that is held, in [0, 1]; those that are held already stay so.
            starts: Values to start from, by the names of the weights; else those there are.

        Raises:
            ValueError: If a weight is not finite.
        """
        for i, layer in enumerate(self.constraint.layers):
            dead = _dead(layer, zeros[i])
            start = starts.get(layer.name, self._codebook(i, pins_zero=dead is not None))
            index, values = self._clustered(i, layer.weight, dead, start)
            free = self._free(i, dead, part)
            assignment = Assignment(index, len(values), pins_zero=dead is not None, free=free)
            self.constraint.replace(i, assignment, values)

    @torch.no_grad()
    def soft(self, zeros: Sequence[Tensor | None]) -> dict[str, SoftClusters]:
        """Soft clusters, by the names of the weights, that begin where clustering the weights of all layers does.

        Args:
            zeros: As in :meth:`update`.
        """
        found = {}
        for i, layer in enumerate(self.constraint.layers):
            dead = _dead(layer, zeros[i])
            index, values = self._clustered(i, layer.weight, dead, self._codebook(i, pins_zero=dead is not None))
            layout, masses = self.sharings[i].layout(layer), masses_of(layer.weight, dead, self._sensitivity(layer))
            errors = layer.weight.flatten() - values[index]
            rows = layout.rows(errors.square().view(layer.shape) * (1 if masses is None else masses))
            total = layout.rows(torch.ones_like(layer.weight) if masses is None else masses).sum(dim=1)
            smallest = layer.weight.square().mean() * 1e-9 + torch.finfo(layer.weight.dtype).tiny
            variances = (rows.sum(dim=1) / total.clamp(min=1e-12)).clamp(min=smallest)
            codebooks = values[int(dead is not None) :].view(layout.num_codebooks, -1)
            found[layer.name] = SoftClusters(layout, codebooks, variances, masses)
        return found

    def state_dict(self) -> dict[str, Tensor]:
        """Sums of squared gradients, by the names of the weights."""
        return {name: tensor.cpu() for name, tensor in self.squares.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Takes what :meth:`state_dict` gave."""
        devices = {layer.name: layer.parameter.device for layer in self.constraint.layers}
        self.squares = {name: tensor.to(devices[name], copy=True) for name, tensor in state.items()}

    def _free(self, i: int, dead: Tensor | None, part: float) -> Tensor | None:
        """True where a weight stays free: the smallest do longest (Zhou et al. 2017, arXiv:1702.03044)."""
        if part >= 1:
            return None
        assignment = self.constraint.assignments[i]
        scores = self.constraint.layers[i].weight.abs().flatten().float()
        if assignment is not None:
            held = torch.ones_like(scores, dtype=torch.bool) if assignment.free is None else ~assignment.free
            scores.masked_fill_(held, torch.inf)
        num_live = len(scores)
        if dead is not None:
            scores.masked_fill_(dead.flatten(), torch.inf)
            num_live -= int(dead.sum())
        num_free = min(num_live - round(part * num_live), int(scores.isfinite().sum()))
        if num_free == 0:
            return None
        largest = scores.kthvalue(num_free).values
        smaller, equal = scores < largest, scores == largest
        return smaller | (equal & (equal.cumsum(0) <= num_free - smaller.sum()))

    def _clustered(self, i: int, points: Tensor, dead: Tensor | None, start: Tensor | None) -> tuple[Tensor, Tensor]:
        layer = self.constraint.layers[i]
        if not bool(points.isfinite().all()):
            raise ValueError(
                f"{layer.name!r} has weights that are not finite, which have no clusters: lower the learning rate."
            )
        sensitivity = self._sensitivity(layer)
        return self.sharings[i].cluster(layer, points, zeros=dead, sensitivity=sensitivity, start=start)

    def _codebook(self, i: int, *, pins_zero: bool) -> Tensor | None:
        """The values there are, means of free members included, if clusters of their kind are wanted again."""
        assignment = self.constraint.assignments[i]
        if assignment is None or assignment.pins_zero != pins_zero:
            return None
        if assignment.free is not None:
            assignment = Assignment(assignment.index, assignment.num_clusters)
        return assignment.means(self.constraint.layers[i].weight)[int(pins_zero) :]

    def _sensitivity(self, layer: Layer) -> Tensor | None:
        """Squared gradients on a floor: also a weight that has not mattered yet should have a value near it."""
        squares = self.squares.get(layer.name)
        if squares is None:
            return None
        mean = squares.mean()
        return squares / mean + 0.01 if bool(mean > 0) else torch.ones_like(squares)


def _dead(layer: Layer, zeros: Tensor | None) -> Tensor | None:
    """True where a weight stays zero; ``None`` if none does."""
    dead = layer.weight == 0 if zeros is None else zeros
    return dead if bool(dead.any()) else None
