"""Replacing assignments by better ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_compress.clustering.sharing import Sharing
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
        squares: Sums of squared gradients, by the names of the weights.
    """

    def __init__(self, constraint: CodebookConstraint, sharings: Sequence[Sharing], *, weighted: bool = False) -> None:
        self.constraint = constraint
        self.sharings = list(sharings)
        self.weighted = weighted
        self.residuals: dict[str, Tensor] = {}
        self.squares: dict[str, Tensor] = {}
        self._pending: dict[str, tuple[Tensor | None, Tensor | None]] = {}
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
            residual = None
            if assignment is not None:
                shared = torch.empty_like(gradient)
                assignment.write_(shared, assignment.means(gradient))
                residual = gradient - shared
            self._pending[layer.name] = residual, gradient.square() if self.weighted else None

    def step_completed(self, layers: Sequence[Layer]) -> None:
        """Counts the gradients that were read, now that the step has been made."""
        for layer in layers:
            for sums, new in zip((self.residuals, self.squares), self._pending.pop(layer.name, ()), strict=False):
                if new is not None:
                    sums[layer.name] = sums[layer.name].add_(new) if layer.name in sums else new

    @torch.no_grad()
    def update(
        self,
        zeros: Sequence[Tensor | None],
        displacement: Callable[[Layer, Tensor], Tensor] = lambda layer, residual: torch.zeros_like(residual),
    ) -> None:
        """Clusters the weights of all layers anew.

        Args:
            zeros: For each layer, True where a weight is to stay zero; ``None``: where it is zero now.
            displacement: How far a weight would have moved, from a layer and the sum of its residual gradients.

        Raises:
            ValueError: If a weight is not finite.
        """
        for i, layer in enumerate(self.constraint.layers):
            weight = layer.weight
            if not bool(weight.isfinite().all()):
                raise ValueError(
                    f"{layer.name!r} has weights that are not finite, which has no clusters: lower the learning rate."
                )
            dead = weight == 0 if zeros[i] is None else zeros[i]
            assert dead is not None
            dead = dead if bool(dead.any()) else None
            points = weight
            if layer.name in self.residuals:
                points = weight + displacement(layer, self.residuals[layer.name]).to(weight.dtype)
            squares = self.squares.get(layer.name)
            index, values = self.sharings[i].cluster(
                layer, points, zeros=dead, sensitivity=None if squares is None else _sensitivity(squares),
                start=self._start(i, pins_zero=dead is not None),
            )  # fmt: skip
            self.constraint.replace(i, Assignment(index, len(values), pins_zero=dead is not None), values)
        self.residuals = {}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """What was gathered since the last update."""
        return {
            "residuals": {name: tensor.cpu() for name, tensor in self.residuals.items()},
            "squares": {name: tensor.cpu() for name, tensor in self.squares.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes what :meth:`state_dict` gave."""
        devices = {layer.name: layer.parameter.device for layer in self.constraint.layers}
        self.residuals, self.squares = (
            {name: tensor.to(devices[name], copy=True) for name, tensor in state[kind].items()}
            for kind in ("residuals", "squares")
        )

    def _start(self, i: int, *, pins_zero: bool) -> Tensor | None:
        """The codebook there is, if clusters of its kind are wanted again."""
        assignment = self.constraint.assignments[i]
        if assignment is None or assignment.pins_zero != pins_zero:
            return None
        return assignment.values(self.constraint.layers[i].weight)[int(pins_zero) :]


def _sensitivity(squares: Tensor) -> Tensor:
    """Squared gradients on a floor, since a weight that has not mattered yet still should have a cluster near it."""
    mean = squares.mean()
    return squares / mean + 0.01 if bool(mean > 0) else torch.ones_like(squares)
