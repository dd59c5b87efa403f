"""Progress of a fit, and checks of the times of a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeGuard

from lightning.pytorch import Trainer

from lightning_compress.schedules import Progress, time_value
from lightning_compress.trainer.queries import callbacks_of, is_a


def progress(trainer: Trainer, steps: int, *, in_step: bool, in_batch: bool = True) -> Progress:
    """Return the progress of a fit in steps, epochs and as a fraction of the run.

    Args:
        trainer: The Trainer.
        steps: Completed steps of the optimizer that owns the targets.
        in_step: True while an optimizer step is being made that ``global_step`` does not count yet.
        in_batch: True if the current batch counts as done. Between batches a resumed Trainer does not yet know that an
            epoch is over, so this is called within one.
    """
    num_batches: float = trainer.num_training_batches
    started = trainer.fit_loop.epoch_loop.batch_progress.current.ready - int(not in_batch)
    epochs = trainer.current_epoch + (min(started / num_batches, 1.0) if num_batches else 0.0)
    parts = []
    max_epochs = _planned_epochs(trainer)
    if is_bounded(max_epochs) and num_batches != float("inf"):
        parts.append(epochs / max_epochs)
    if is_bounded(trainer.max_steps):
        parts.append((trainer.global_step + int(in_step)) / trainer.max_steps)
    return Progress(steps=steps, fraction=min(max(parts), 1.0) if parts else None, epochs=epochs)


def _planned_epochs(trainer: Trainer) -> int | None:
    """Return the number of training epochs: SWA adds one to the Trainer's limit, in which no step is made."""
    swa = (getattr(c, "_max_epochs", None) for c in callbacks_of(trainer) if is_a(c, "StochasticWeightAveraging"))
    return next((limit for limit in swa if limit is not None), trainer.max_epochs)


def is_bounded(limit: float | None) -> TypeGuard[float]:
    """Return True if a Trainer's ``max_epochs`` or ``max_steps`` is a limit."""
    return limit is not None and limit > 0


def check_time_fits(trainer: Trainer, name: str, time: int | float | str) -> None:
    """Check in ``setup`` that a time of a schedule lies within the run.

    Raises:
        ValueError: For a fraction of an unbounded run, and for epochs or steps past its end.
    """
    if (
        isinstance(time, float)
        and time > 0
        and not is_bounded(trainer.max_epochs)
        and not is_bounded(trainer.max_steps)
    ):
        raise ValueError(
            f"{name}={time} is a fraction of the run, which has no end: set the Trainer's max_epochs or max_steps, "
            "or write an int (optimizer steps) or a string such as '12ep' (epochs)."
        )
    if isinstance(time, str) and is_bounded(trainer.max_epochs) and time_value(time) > trainer.max_epochs:
        raise ValueError(
            f"{name}={time!r} lies beyond the run's {trainer.max_epochs} epochs: use an earlier time or a longer run."
        )
    if isinstance(time, int) and is_bounded(trainer.max_steps) and time > trainer.max_steps:
        raise ValueError(
            f"{name}={time} lies beyond the run's {trainer.max_steps} steps: use an earlier time or a longer run."
        )


def check_times_within_run(trainer: Trainer, times: Mapping[str, int | float | str]) -> None:
    """Check that the times of a schedule lie within this run, now that its data is known.

    Raises:
        ValueError: For steps past its end, and for times that depend on the length of data without one.
    """
    has_length = trainer.num_training_batches != float("inf") or is_bounded(trainer.max_steps)
    total = trainer.estimated_stepping_batches if trainer.lightning_module.automatic_optimization else -1
    for name, time in times.items():
        if not has_length and _needs_length(trainer, name, time):
            raise ValueError(
                f"{name}={time!r} cannot be resolved for training data without a length: set the Trainer's max_steps, "
                "or write an int (optimizer steps) or epochs before the last, such as '1ep'."
            )
        if isinstance(time, int) and name != "every" and is_bounded(total) and time > total:
            raise ValueError(
                f"{name}={time} lies beyond the run's {total} optimizer steps: use an earlier time or a longer run."
            )


def _needs_length(trainer: Trainer, name: str, time: int | float | str) -> bool:
    """Return True if a time cannot be resolved without a length: the last epoch is known only once it is over."""
    if isinstance(time, str):
        return name == "end" and is_bounded(trainer.max_epochs) and time_value(time) >= trainer.max_epochs
    return isinstance(time, float) and time > 0
