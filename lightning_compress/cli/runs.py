"""Runs of the command ``run``: the requested one, the runs that it depends on, and its baseline."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger

import lightning_compress as lc
from lightning_compress.cli.chained_run import ChainedRun
from lightning_compress.cli.compression import TECHNIQUES
from lightning_compress.cli.finished_run import PREVIOUS_RUN, FinishedRun
from lightning_compress.cli.recipes import find, run_name_of
from lightning_compress.cli.run_directory import newest_checkpoint
from lightning_compress.cli.run_results import BaselineResult
from lightning_compress.cli.stage_cli import Metrics
from lightning_compress.cli.wandb_runs import finish_runs, open_separate_run

TEACHER_RUN, TEACHER_FILE = "teacher", "teacher.ckpt"


class RunCLI(ChainedRun):
    """ChainedRun that first runs the stage before it (``after``) and the training of its teacher (``teacher``).

    Attributes:
        teacher_metrics: Test metrics of the teacher, if it was trained by this run.
        previous_metrics: Test metrics of the previous stages by recipe, if they were run by this run.
    """

    teacher_metrics: Mapping[str, float] = {}
    previous_metrics: Mapping[str, Metrics] = {}

    def close(self) -> None:
        """Finish the runs of the loggers."""
        finish_runs(self.trainer)

    def prepare_config(self, config: Namespace) -> None:
        """Run the previous stage and the teacher, and complete the configuration with the teacher's checkpoint."""
        self.inputs_of_run: dict[str, Path] = {}
        super().prepare_config(config)
        if config.after:
            self.previous_run = self._run_previous(config.after)
        self._prepare_teacher(config)
        checkpoint = newest_checkpoint(self.directory) if self.goes_on else None
        config.ckpt_path = config.ckpt_path or (checkpoint and str(checkpoint))

    def _run_previous(self, after: str) -> FinishedRun:
        if Path(after).is_dir():
            return FinishedRun(Path(after))
        recipe = find(after, near=self.recipe_directories)
        found = self.finished_stage(PREVIOUS_RUN, recipe)
        if found is not None:
            self.previous_metrics = found
            return FinishedRun(self.directory / PREVIOUS_RUN)
        run = PreviousRun(self, recipe)
        self.previous_metrics = run.execute()
        self.note_stage(run.directory, recipe, self.previous_metrics)
        run.close()
        # The random state is the same as after --after=DIRECTORY.
        self._set_seed()
        return FinishedRun(run.directory)

    def _prepare_teacher(self, config: Namespace) -> None:
        """Train the teacher if the recipe names one and ``model.teacher`` is not set."""
        arguments = config.model.get("init_args") or Namespace()
        if not config.teacher or arguments.get("teacher") is not None:
            return
        if "teacher" not in arguments:
            raise ValueError(f"teacher={config.teacher} is only supported for a DistillationModule as model.")
        recipe = find(config.teacher, near=self.recipe_directories)
        found = self.finished_stage(TEACHER_RUN, recipe)
        if found is not None:
            self.teacher_metrics = found
            self.inputs_of_run["teacher"] = self.directory / TEACHER_RUN / TEACHER_FILE
            arguments.teacher = str(self.inputs_of_run["teacher"])
            return
        run = TeacherRun(self, recipe)
        self.teacher_metrics = run.fit_and_test()
        arguments.teacher = run.save()
        self.inputs_of_run["teacher"] = Path(arguments.teacher)
        self.note_stage(run.directory, recipe, self.teacher_metrics)
        run.close()
        # The random state is the same as with a teacher that was trained before.
        self._set_seed()


class ChildRun(RunCLI):
    """Run that belongs to another one; its directory is inside that of its parent.

    Args:
        parent: Run that needs this one.
        name: Name of the directory and of the W&B run.
        args: Configuration of the run.
    """

    can_go_on = True

    def __init__(self, parent: RunCLI, name: str, args: Any) -> None:
        self.parent, self.name = parent, name
        self.goes_on = parent.goes_on and self.can_go_on
        super().__init__(args=args, run=False, run_name=parent.run_name)

    @property
    def label(self) -> str:
        """Name of the run in W&B."""
        return f"{self.run_name} {self.name}"

    @property
    def group(self) -> str:
        """Name of the W&B group of the parent."""
        return self.parent.group

    def make_directory(self) -> Path:
        """Return a directory inside that of the parent."""
        return self.parent.directory / self.name

    def note_progress(self) -> None:
        """Note it in the directory of the command."""
        self.parent.note_progress()

    @property
    def log_directory(self) -> Path:
        """Log directory of the parent, so that one ``wandb sync`` uploads both runs."""
        return self.parent.log_directory

    def prepare_config(self, config: Namespace) -> None:
        """Prepare the runs that this one depends on, and leave out the summary of its model."""
        _share_folder(self.parent.config.get("data"), config.get("data"))
        super().prepare_config(config)
        config.trainer.enable_model_summary = bool(config.trainer.enable_model_summary)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Instantiate the Trainer, with a W&B run beside that of the parent."""
        trainer = super().instantiate_trainer(**kwargs)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                open_separate_run(logger)
        return trainer


class TeacherRun(ChildRun):
    """Training of a teacher.

    Args:
        parent: Run of the student.
        recipe: Path of the recipe.
    """

    job_type = "teacher"

    def __init__(self, parent: RunCLI, recipe: Path) -> None:
        super().__init__(parent, TEACHER_RUN, [f"--config={recipe}"])

    def save(self) -> str:
        """Save the tested weights as a checkpoint and return its path."""
        path = str(self.directory / TEACHER_FILE)
        self.trainer.save_checkpoint(path, weights_only=True)
        return path


class PreviousRun(ChildRun):
    """Previous stage of a run.

    Args:
        parent: Run that continues with the network.
        recipe: Path of the recipe.
    """

    job_type = "stage"

    def __init__(self, parent: RunCLI, recipe: Path) -> None:
        self.recipe = run_name_of(recipe)
        super().__init__(parent, PREVIOUS_RUN, [f"--config={recipe}"])

    def execute(self) -> dict[str, Metrics]:
        """Fit, test and pack; return the test metrics of this stage and of the previous ones, by recipe."""
        fitted = self.fit_and_test()
        shrunk = self.shrink()
        self.pack()
        return {**self.previous_metrics, self.recipe: shrunk or fitted}


class BaselineRun(ChildRun):
    """The same run without techniques and without a teacher.

    Args:
        parent: Run to compare with.
    """

    job_type = "baseline"
    can_go_on = False

    def __init__(self, parent: RunCLI) -> None:
        config = parent.config.clone()
        self.is_fitted = config.baseline == "fit"
        config.pop("config", None)
        for key in (*TECHNIQUES, "ckpt_path", "teacher", "after"):
            config[key] = None
        config["baseline"] = "skip"
        super().__init__(parent, "baseline", config)
        if isinstance(self.model, lc.DistillationModule):
            self.model = self.model.student

    def compression_callbacks(self) -> list[Callback]:
        """Return the run record only."""
        return [self.record]

    def execute(self) -> BaselineResult:
        """Return the test metrics and the network after the same training, or of the initial model."""
        metrics = self.fit_and_test() if self.is_fitted else self.test()
        self.close()
        return BaselineResult.of(self.model, metrics, self.parent.deployed_module)


def _share_folder(given: Namespace | None, data: Namespace | None) -> None:
    """Let a recipe that names no folder of its data read it where its parent reads data of the same class.

    A command gives the folder once, for all of its runs.
    """
    if given is None or data is None or given.class_path != data.class_path:
        return
    arguments = data.get("init_args") or Namespace()
    # A class that passes its arguments on has none of that name in its own signature.
    parameter = inspect.signature(locate(data.class_path)).parameters.get("root")  # type: ignore[arg-type]
    if parameter is not None and arguments.get("root") == parameter.default:
        arguments.root = given.init_args.root
