"""What the callbacks read of Lightning's Trainer, in one place.

Classes are told by name where Lightning's are meant, so that a Trainer of ``pytorch_lightning`` serves as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.optim.swa_utils import AveragedModel

from lightning_compress.schedules import Progress, amount


def is_a(instance: object, *names: str) -> bool:
    """Whether an object is of a class of one of these names, or of a subclass."""
    return any(base.__name__ in names for base in type(instance).__mro__)


def refuse_strategy(trainer: Trainer, technique: str) -> None:
    """Refuses strategies under which weights cannot be projected where the optimizer holds them.

    Raises:
        ValueError: For FSDP1 and DeepSpeed.
    """
    if is_a(trainer.strategy, "FSDPStrategy", "DeepSpeedStrategy"):
        raise ValueError(
            f"{technique} does not work under {type(trainer.strategy).__name__}, which flattens or splits weights: "
            "use 'ddp', or ModelParallelStrategy with FSDP2's fully_shard in configure_model."
        )


def is_built_late(pl_module: LightningModule) -> bool:
    """Whether the model may still be incomplete in ``Callback.setup``, since it overrides a hook that can build it."""
    hooks = (getattr(type(pl_module), name) for name in ("configure_model", "setup"))
    return any(not hook.__module__.endswith(".core.hooks") for hook in hooks)


def refuse_foreign_checkpoint(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuses to resume from a checkpoint whose weights are of another model, before anything is loaded.

    Raises:
        ValueError: With the first name that differs.
    """
    path = trainer.ckpt_path
    if not path or not Path(path).is_file() or is_built_late(pl_module) or not pl_module.strict_loading:
        return
    stored = torch.load(path, mmap=True, weights_only=True, map_location="cpu").get("state_dict", {})
    ours = pl_module.state_dict()
    for name in (*ours, *stored):
        if name not in stored or name not in ours or stored[name].shape != ours[name].shape:
            where = "is only in the model" if name not in stored else "is only in the checkpoint"
            where = where if name not in stored or name not in ours else "differs in shape"
            raise ValueError(f"Checkpoint {path} is of another model: {name!r} {where}.")


def progress(trainer: Trainer, steps: int, *, in_step: bool) -> Progress:
    """How far the fit has come, batches that are being worked on included.

    Args:
        trainer: The Trainer.
        steps: Completed steps of the optimizer that owns the targets.
        in_step: Whether an optimizer step is being made, so that ``global_step`` does not have it yet.
    """
    num_batches = trainer.num_training_batches
    started = trainer.fit_loop.epoch_loop.batch_progress.current.ready
    epochs = trainer.current_epoch + (min(started / num_batches, 1.0) if num_batches else 0.0)
    parts = []
    if bounded(trainer.max_epochs) and num_batches != float("inf"):
        parts.append(epochs / trainer.max_epochs)
    if bounded(trainer.max_steps):
        parts.append((trainer.global_step + int(in_step)) / trainer.max_steps)
    return Progress(steps=steps, fraction=min(max(parts), 1.0) if parts else None, epochs=epochs)


def bounded(limit: int | None) -> bool:
    """Whether a Trainer's ``max_epochs`` or ``max_steps`` is a limit."""
    return limit is not None and limit > 0


def check_time_fits(trainer: Trainer, name: str, time: int | float | str) -> None:
    """Refuses a time that this run has not got.

    Raises:
        ValueError: For a fraction of an unbounded run, and for epochs or steps past its end.
    """
    if isinstance(time, float) and not bounded(trainer.max_epochs) and not bounded(trainer.max_steps):
        raise ValueError(
            f"{name}={time} is a fraction of the run, which has no end: set the Trainer's max_epochs or max_steps, "
            "or write an int (optimizer steps) or a string such as '12ep' (epochs)."
        )
    if isinstance(time, str) and bounded(trainer.max_epochs) and amount(time) > trainer.max_epochs:
        raise ValueError(f"{name}={time!r} lies beyond the run's {trainer.max_epochs} epochs.")
    if isinstance(time, int) and bounded(trainer.max_steps) and time > trainer.max_steps:
        raise ValueError(f"{name}={time} lies beyond the run's {trainer.max_steps} steps.")


def averaged_models(trainer: Trainer) -> Iterator[nn.Module]:
    """Copies of the model in which callbacks (WeightAveraging, SWA) keep averages of its weights."""
    for callback in trainer.callbacks:
        average = getattr(callback, "_average_model", None)
        if isinstance(average, AveragedModel):
            yield average.module
        elif isinstance(average, nn.Module):
            yield average


def run_after_averaging(trainer: Trainer, callback: Callback) -> None:
    """Moves callbacks that average weights before ``callback``, so that it sees each average after its update."""
    averaging = [c for c in trainer.callbacks if is_a(c, "WeightAveraging", "StochasticWeightAveraging")]
    others = [c for c in trainer.callbacks if c not in averaging]
    place = others.index(callback)
    trainer.callbacks = [*others[:place], *averaging, *others[place:]]
