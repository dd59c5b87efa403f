"""W&B runs of the command ``run``: runs beside each other, and artifacts with their inputs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import wandb
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only


@rank_zero_only
def open_separate_run(logger: WandbLogger) -> None:
    """Open a run for a logger, beside the run of this process and under an id of its own.

    A logger would otherwise join the run that is open, and W&B would resume the run in ``WANDB_RUN_ID``, which is
    meant for the main run of a command.

    Args:
        logger: Logger that has not logged anything.
    """
    settings: dict[str, Any] = {**logger._wandb_init, "id": logger._wandb_init.get("id") or secrets.token_hex(4)}
    given = {name: value for name, value in settings.items() if value is not None}
    run = wandb.init(**{**given, "reinit": "create_new"})
    run.define_metric("trainer/global_step")
    run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
    logger._experiment = run


def finish_runs(trainer: Trainer) -> None:
    """Finish the runs of loggers that have one open."""
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "_experiment", None)
        if trainer.is_global_zero and hasattr(experiment, "finish"):
            experiment.finish()


def log_artifacts(
    trainer: Trainer, name: str, outputs: Mapping[str, Path], inputs: Mapping[str, Path], metadata: Mapping[str, Any]
) -> None:
    """Log the files of a run as W&B artifacts, with the models that they were made from as inputs.

    Args:
        trainer: Trainer of the run.
        name: Name of the run, with which the names of its artifacts begin.
        outputs: Kind to file or directory.
        inputs: Kind to checkpoint.
        metadata: Metadata of the outputs.
    """
    for run in _runs(trainer):
        for kind, path in inputs.items():
            _use_artifact(run, _artifact(name, kind, path, {}))
        for kind, path in outputs.items():
            run.log_artifact(_artifact(name, kind, path, metadata))


def _runs(trainer: Trainer) -> Iterator[Any]:
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger) and trainer.is_global_zero:
            yield logger.experiment


def _use_artifact(run: Any, model: Any) -> None:
    """Record an artifact as an input of a run."""
    if run.settings._offline:
        # use_artifact is for online runs; this is its record, with which 'wandb sync' makes the artifact an input.
        run._log_artifact(model, is_user_created=True, use_after_commit=True)
    else:
        run.use_artifact(model)


def _artifact(name: str, kind: str, path: Path, metadata: Mapping[str, Any]) -> Any:
    types = {"report": "report", "figures": "report", "removal": "log"}
    logged = wandb.Artifact(f"{name}-{kind}", type=types.get(kind, "model"), metadata=dict(metadata))
    if path.is_dir():
        logged.add_dir(str(path))
    else:
        logged.add_file(str(path))
    return logged
