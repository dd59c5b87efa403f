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

    Raises:
        ValueError: If the optimizer was not initialized as one of torch, and calls no hooks.
    """

    def __init__(self, optimizer: Optimizer, call: Callable[[Optimizer], None]) -> None:
        if not _calls_hooks(optimizer):
            raise ValueError(
                f"{type(optimizer).__name__} calls no hooks around its steps, after which weights are projected: call "
                "super().__init__(params, defaults) of torch.optim.Optimizer in its __init__."
            )
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


def _calls_hooks(optimizer: Optimizer) -> bool:
    # Optimizer.__init__ makes the dictionaries of hooks, and wraps the step of the class, which calls them.
    return hasattr(optimizer, "_optimizer_step_pre_hooks") and getattr(type(optimizer).step, "hooked", False)


def optimizers_of(optimizers: Sequence[Optimizer], layers: Sequence[Layer]) -> list[Optimizer]:
    """Return the optimizers that hold weights of the layers, the one with the most weights first.

    A weight that several optimizers hold counts for each.

    Raises:
        ValueError: If no optimizer holds a weight.
    """
    unheld = layers_outside(optimizers, layers)
    if unheld:
        raise ValueError(
            f"No optimizer holds {unheld[0].name!r}: return it from configure_optimizers, freeze it, or exclude it."
        )
    unique = {id(optimizer): optimizer for optimizer in optimizers}.values()
    shares = [(sum(layer.parameter.numel() for layer in layers_in(o, layers)), o) for o in unique]
    return [optimizer for share, optimizer in sorted(shares, key=lambda pair: -pair[0]) if share]


def counted_optimizers(optimizers: Sequence[Optimizer], layers: Sequence[Layer]) -> list[Optimizer]:
    """Return the optimizers that count the steps: the first of :func:`optimizers_of`, and those with the same weights.

    Optimizers that take turns on the same weights all count; of optimizers with weights of their own only the first.
    """
    first = layers_in(optimizers[0], layers) if optimizers else []
    return [optimizer for optimizer in optimizers if layers_in(optimizer, layers) == first]


def layers_in(optimizer: Optimizer, layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers with a weight that an optimizer holds."""
    held = _held_by([optimizer])
    return [layer for layer in layers if id(layer.parameter) in held]


def layers_outside(optimizers: Sequence[Optimizer], layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers with a weight that no optimizer holds."""
    held = _held_by(optimizers)
    return [layer for layer in layers if id(layer.parameter) not in held]


def _held_by(optimizers: Sequence[Optimizer]) -> set[int]:
    return {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
