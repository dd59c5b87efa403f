"""Hooks on all optimizers that hold given weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch.optim import Optimizer

from lightning_compress.constraints.completed_steps import (
    CompletedSteps,
    counted_optimizers,
    layers_in,
    layers_outside,
    optimizers_of,
)
from lightning_compress.constraints.layer import Layer


class OptimizerHooks:
    """Call a function after every completed step of the optimizers that hold given weights.

    Args:
        optimizers: All optimizers of a fit.
        layers: The weights.
        call: Function of the optimizer that has stepped.

    Attributes:
        holders: The optimizers that hold a weight, the one with the most weights first.

    Raises:
        ValueError: If no optimizer holds a weight, or if an optimizer calls no hooks.
    """

    def __init__(
        self, optimizers: Sequence[Optimizer], layers: Sequence[Layer], call: Callable[[Optimizer], None]
    ) -> None:
        self._layers = layers
        self._call = call
        self._steps: list[CompletedSteps] = []
        self._attach(optimizers, optimizers_of(optimizers, layers))

    def layers_of(self, optimizer: Optimizer) -> list[Layer]:
        """Return the weights that an optimizer holds."""
        return self._layers_by_optimizer.get(id(optimizer), [])

    def counts(self, optimizer: Optimizer) -> bool:
        """Return True if a step of the optimizer is a step of the schedule."""
        return any(optimizer is counted for counted in self._counted)

    def follow(self, optimizers: Sequence[Optimizer]) -> list[Layer]:
        """Move to the optimizers of the fit if they have been replaced; return the weights that none of them holds."""
        if self._ids == [id(optimizer) for optimizer in optimizers]:
            return []
        outside = layers_outside(optimizers, self._layers)
        held = [layer for layer in self._layers if layer not in outside]
        self.remove()
        self._attach(optimizers, optimizers_of(optimizers, held))
        return outside

    def reset(self) -> None:
        """Forget steps that raised; to be called while no step is being made."""
        for steps in self._steps:
            steps.reset()

    def remove(self) -> None:
        """Remove the hooks from all optimizers."""
        for steps in self._steps:
            steps.remove()
        self._steps = []

    def _attach(self, optimizers: Sequence[Optimizer], holders: list[Optimizer]) -> None:
        self._ids = [id(optimizer) for optimizer in optimizers]
        self.holders = holders
        self._counted = counted_optimizers(holders, self._layers)
        self._layers_by_optimizer = {id(optimizer): layers_in(optimizer, self._layers) for optimizer in holders}
        self._steps = [CompletedSteps(optimizer, self._call) for optimizer in holders]
