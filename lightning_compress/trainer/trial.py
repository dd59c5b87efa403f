"""Trial training step on a copy of the model, before the fit."""

from __future__ import annotations

from collections.abc import Callable

import torch

from lightning_compress.arguments import Arguments, reason
from lightning_compress.trainer.batches import first_training_batch
from lightning_compress.trainer.loaders import ADVICE
from lightning_compress.trainer.probe import TrainingProbe
from lightning_compress.trainer.queries import overrides_hook

# Hooks that Lightning calls before the first training step, in which models prepare what that step needs.
_EARLIER_HOOKS = ("setup", "on_fit_start", "on_train_start", "on_train_epoch_start")


def record_calls(probe: TrainingProbe) -> dict[str, Arguments]:
    """Return the arguments of the first call of every module in a training step, in training mode.

    A network may answer otherwise in training (auxiliary outputs, losses of a detector), and ``training_step`` is
    written for these answers. Modes and buffers of the copy are restored.

    Args:
        probe: Copy of the model, before the fit.

    Raises:
        ValueError: If the step fails on the first batch.
    """
    calls: dict[str, Arguments] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: calls.setdefault(name, (args, kwargs)) and None

    modes = {module: module.training for module in probe.model.modules()}
    buffers = [(buffer, buffer.clone()) for buffer in probe.model.buffers()]
    handles = [m.register_forward_pre_hook(record(name), with_kwargs=True) for name, m in probe.model.named_modules()]
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            _step(probe)
    finally:
        for handle in handles:
            handle.remove()
    for module, mode in modes.items():
        module.training = mode
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    return calls


def _step(probe: TrainingProbe) -> None:
    """Run a training step; if it fails, with the full batch, and then after the hooks that would precede it."""
    failures: list[Exception] = []
    for prepare in (lambda: None, lambda: _read_full_batch(probe), lambda: _call_earlier_hooks(probe)):
        try:
            prepare()
            probe.model.train()
            probe.step()
        except Exception as error:
            failures.append(error)
        else:
            return
    first = failures[0]
    raise ValueError(
        f"A training step before the fit failed ({type(first).__name__}: {reason(first)}): {ADVICE}"
    ) from first


def _read_full_batch(probe: TrainingProbe) -> None:
    probe.batch = first_training_batch(probe.trainer, probe.model)


def _call_earlier_hooks(probe: TrainingProbe) -> None:
    for name in _EARLIER_HOOKS:
        if overrides_hook(probe.model, name):
            getattr(probe.model, name)(*(["fit"] if name == "setup" else []))
