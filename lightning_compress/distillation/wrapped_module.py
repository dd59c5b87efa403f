"""Delegation of Lightning hooks, steps, logging and numbers between a LightningModule and one inside it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.parsing import lightning_getattr, lightning_hasattr

_STEPS = (
    "validation_step", "test_step", "predict_step", "configure_callbacks", "configure_gradient_clipping",
    "backward", "lr_scheduler_step", "optimizer_step", "optimizer_zero_grad",
)  # fmt: skip


def adopt_hooks(outer: LightningModule, inner: LightningModule) -> None:
    """Give the outer module the hooks and steps that the inner one overrides and the outer's class does not.

    Args:
        outer: Module that the Trainer runs.
        inner: A child of ``outer``.
    """
    hooks = [name for hooks in (ModelHooks, DataHooks, CheckpointHooks) for name in vars(hooks) if name[0] != "_"]
    # Bound methods on the instance: Lightning's is_overridden then sees exactly the hooks that exist, and a deep copy
    # of the outer module binds them to the copied inner one.
    for name in (*hooks, *_STEPS):
        if is_overridden(name, inner) and not is_overridden(name, outer):
            vars(outer)[name] = getattr(inner, name)
    vars(inner)["log"] = DelegatedMethod(inner, outer, "log")  # log_dict calls it, too


def has_number(inner: LightningModule | None, name: str) -> bool:
    """Return True if a module, its hyperparameters or its data module have a public number of a name.

    Args:
        inner: The module, or ``None`` before there is one.
        name: Name of the attribute, such as ``"learning_rate"`` or ``"batch_size"``.
    """
    if inner is None or name.startswith("_") or not lightning_hasattr(inner, name):
        return False
    value = lightning_getattr(inner, name)
    return isinstance(value, (int, float)) and not isinstance(value, bool)


class DelegatedMethod:
    """Callable that runs a method of the outer module instead of the inner one's while both have the same Trainer.

    Args:
        inner: Module that has this object as an attribute.
        outer: Module that has the method.
        method: Name of the method.
    """

    # The method is looked up by name in each call, so that one replaced on the outer module is found.

    def __init__(self, inner: LightningModule, outer: LightningModule, method: str) -> None:
        self._inner, self.outer, self._method = inner, outer, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method."""
        # The inner module is trained or validated by itself.
        if self._inner._trainer is not self.outer._trainer:
            return getattr(type(self._inner), self._method)(self._inner, *args, **kwargs)
        return getattr(self.outer, self._method)(*args, **kwargs)
