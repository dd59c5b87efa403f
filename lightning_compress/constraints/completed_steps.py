"""Completed optimizer steps, and the optimizers that hold given weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_compress.constraints.layer import Layer


def step_was_skipped(optimizer: Optimizer) -> bool:
    """Return True if the step just taken was skipped because gradients overflowed.

    Under a ``GradScaler`` only fused optimizers are called, and call their hooks, for a skipped step.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    return isinstance(found_inf, torch.Tensor) and bool(found_inf)


class CompletedSteps:
    """Call a function after every completed step of an optimizer.

    An overridden ``step`` that calls its parent class's runs torch's hooks twice; only the outer call counts.

    Args:
        optimizer: The optimizer.
        call: Function of the optimizer.
    """

    def __init__(self, optimizer: Optimizer, call: Callable[[Optimizer], None]) -> None:
        self._call = call
        self._depth = 0
        self._handles = [optimizer.register_step_pre_hook(self._enter), optimizer.register_step_post_hook(self._leave)]

    def reset(self) -> None:
        """Forget a call of ``step`` that raised; to be called while no step is being made."""
        self._depth = 0

    def remove(self) -> None:
        """Remove the hooks from the optimizer."""
        for handle in self._handles:
            handle.remove()

    def _enter(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth += 1

    def _leave(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._depth -= 1
        if self._depth == 0 and not step_was_skipped(optimizer):
            self._call(optimizer)


def optimizers_of(optimizers: Sequence[Optimizer], layers: Sequence[Layer]) -> list[Optimizer]:
    """Return the optimizers that hold weights of the layers, the one with the most weights first.

    Raises:
        ValueError: If no optimizer holds a weight.
    """
    shares = {id(optimizer): 0 for optimizer in optimizers}
    holder = {id(p): id(o) for o in optimizers for group in o.param_groups for p in group["params"]}
    for layer in layers:
        if id(layer.parameter) not in holder:
            raise ValueError(
                f"No optimizer holds {layer.name!r}: return it from configure_optimizers, freeze it, or exclude it."
            )
        shares[holder[id(layer.parameter)]] += layer.parameter.numel()
    holding = [optimizer for optimizer in optimizers if shares[id(optimizer)]]
    return sorted(holding, key=lambda optimizer: -shares[id(optimizer)])


def layers_in(optimizer: Optimizer, layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers with a weight that an optimizer holds."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return [layer for layer in layers if id(layer.parameter) in held]
