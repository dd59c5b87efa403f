"""A LightningModule inside another: its hooks are called, and what it logs is logged."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

_STEPS = (
    "validation_step", "test_step", "predict_step", "configure_callbacks", "configure_gradient_clipping",
    "backward", "lr_scheduler_step", "optimizer_step", "optimizer_zero_grad",
)  # fmt: skip


def adopt_hooks(outer: LightningModule, inner: LightningModule) -> None:
    """Gives the outer module the hooks and steps that the inner one defines and the outer's class does not.

    They are the inner module's bound methods, set on the instance, so that Lightning sees which are there; copies of
    the outer module have those of the copied inner one.

    Args:
        outer: What the Trainer sees.
        inner: A child of it.
    """
    hooks = [name for hooks in (ModelHooks, DataHooks, CheckpointHooks) for name in vars(hooks) if name[0] != "_"]
    for name in (*hooks, *_STEPS):
        if is_overridden(name, inner) and not is_overridden(name, outer):
            vars(outer)[name] = getattr(inner, name)
    vars(inner)["log"] = Relay(inner, outer, "log")  # which log_dict calls, too


class Relay:
    """Calls a method of the outer module in the place of the inner one's, unless the inner one is used by itself.

    By name, so that replacing it there is seen; copies of both go together.

    Args:
        inner: The module whose attribute this is.
        outer: The other.
        method: Name of the method.
    """

    def __init__(self, inner: LightningModule, outer: LightningModule, method: str) -> None:
        self._inner, self.outer, self._method = inner, outer, method

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls it."""
        if self._inner._trainer is not self.outer._trainer:
            return getattr(type(self._inner), self._method)(self._inner, *args, **kwargs)
        return getattr(self.outer, self._method)(*args, **kwargs)


def training_step(inner: LightningModule, batch: Any, batch_idx: int) -> Any:
    """Calls a module's training step with what it takes."""
    takes_index = is_param_in_hook_signature(inner.training_step, "batch_idx", min_args=2)
    return inner.training_step(batch, batch_idx) if takes_index else inner.training_step(batch)
