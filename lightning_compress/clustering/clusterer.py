"""Replacing assignments by better ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from lightning_compress.clustering.sharing import Sharing, masses_of
from lightning_compress.clustering.soft import SoftClusters
from lightning_compress.constraints.codebook import Assignment, CodebookConstraint
from lightning_compress.constraints.layer import Layer


class Clusterer:
    """Updates a codebook constraint.

    Once weights are equal within clusters nothing in them says where they would rather be. What does is the part of
    their gradients that the projection takes away: summed up since the last update, it says how far each weight would
    have moved by itself.

    Args:
        constraint: Holds the assignments and the layers.
        sharings: How the weights of each layer share values.
        weighted: Whether a weight counts as much as its squared gradients (the diagonal of the Fisher information, as
            in Choi et al. 2017, arXiv:1612.01543).

    Attributes:
        residuals: What was taken away of the gradients since the last update, by the names of the weights.
        powers: Sums of their mean squares over these steps, and the number of steps, shape (2,).
        squares: Sums of squared gradients, by the names of the weights.
    """

    def __init__(self, constraint: CodebookConstraint, sharings: Sequence[Sharing], *, weighted: bool = False) -> None:
        self.constraint = constraint
        self.sharings = list(sharings)
        self.weighted = weighted
        self.residuals: dict[str, Tensor] = {}
        self.powers: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self._pending: dict[str, tuple[Tensor | None, ...]] = {}
        self._places = {layer.name: i for i, layer in enumerate(constraint.layers)}

    @property
    def has_evidence(self) -> bool:
        """Whether clusters can be looked for now."""
        return not self.weighted or bool(self.squares)

    @torch.no_grad()
    def read_gradients(self, layers: Sequence[Layer], scale: float = 1.0) -> None:
        """Takes in dense gradients, loss scale included, of a step that is about to be made on ``layers``."""
        for layer in layers:
            if layer.parameter.grad is None:
                continue
            gradient = layer.gradient.float() / scale
            assignment = self.constraint.assignments[self._places[layer.name]]
            residual = power = None
            if assignment is not None:
                shared = torch.empty_like(gradient)
                assignment.write_(shared, assignment.means(gradient))
                residual = gradient - shared
                power = torch.stack([residual.square().mean(), residual.new_ones(())])
            self._pending[layer.name] = residual, power, gradient.square() if self.weighted else None

    def step_completed(self, layers: Sequence[Layer]) -> None:
        """Counts the gradients that were read, now that the step has been made."""
        for layer in layers:
            for sums, new in zip(self._sums, self._pending.pop(layer.name, ()), strict=False):
                if new is not None:
                    sums[layer.name] = sums[layer.name].add_(new) if layer.name in sums else new

    @torch.no_grad()
    def update(
        self,
        zeros: Sequence[Tensor | None],
        displacement: Callable[[Layer, Tensor, float], Tensor] = lambda layer, residual, size: residual * 0,
        starts: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Clusters the weights of all layers anew.

        Args:
            zeros: For each layer, True where a weight is to stay zero; ``None``: where it is zero now.
            starts: Values to start from, by the names of the weights; else those there are.
            displacement: How far a weight would have moved, from a layer, the sum of its residual gradients, and
                their root mean square in a step.

        Raises:
            ValueError: If a weight is not finite.
        """
        for i, layer in enumerate(self.constraint.layers):
            points, dead = layer.weight, _dead(layer, zeros[i])
            if layer.name in self.residuals:
                power, steps = self.powers[layer.name].tolist()
                moved = displacement(layer, self.residuals[layer.name], (power / steps) ** 0.5)
                points = points + moved.to(points.dtype)
            start = starts.get(layer.name, self._codebook(i, pins_zero=dead is not None))
            index, values = self._clustered(i, points, dead, start)
            self.constraint.replace(i, Assignment(index, len(values), pins_zero=dead is not None), values)
        self.residuals, self.powers = {}, {}

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

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What was gathered since the last update."""
        kinds = zip(("residuals", "powers", "squares"), self._sums, strict=True)
        return {kind: {name: tensor.cpu() for name, tensor in sums.items()} for kind, sums in kinds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave."""
        devices = {layer.name: layer.parameter.device for layer in self.constraint.layers}
        self.residuals, self.powers, self.squares = (
            {name: tensor.to(devices[name], copy=True) for name, tensor in state[kind].items()}
            for kind in ("residuals", "powers", "squares")
        )

    @property
    def _sums(self) -> tuple[dict[str, Tensor], ...]:
        return self.residuals, self.powers, self.squares

    def _clustered(self, i: int, points: Tensor, dead: Tensor | None, start: Tensor | None) -> tuple[Tensor, Tensor]:
        layer = self.constraint.layers[i]
        if not bool(points.isfinite().all()):
            raise ValueError(
                f"{layer.name!r} has weights that are not finite, which have no clusters: lower the learning rate."
            )
        sensitivity = self._sensitivity(layer)
        return self.sharings[i].cluster(layer, points, zeros=dead, sensitivity=sensitivity, start=start)

    def _codebook(self, i: int, *, pins_zero: bool) -> Tensor | None:
        """The values there are, if clusters of their kind are wanted again."""
        assignment = self.constraint.assignments[i]
        if assignment is None or assignment.pins_zero != pins_zero:
            return None
        return assignment.values(self.constraint.layers[i].weight)[int(pins_zero) :]

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
