"""The runs that the main job is made of: the one that is asked for, and those that it needs or is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden

import lightning_compress as lc
from lightning_compress.cli.compression import TECHNIQUES, CompressionCLI
from lightning_compress.cli.onnx_evaluation import Files, in_place_of, seen_inputs, write_files
from lightning_compress.cli.recipes import find, title
from lightning_compress.cli.stages import BEFORE, NETWORK, REMOVAL, Start, remove_channels_
from lightning_compress.export.requirements import require

Metrics = dict[str, float]


class RunCLI(CompressionCLI):
    """CompressionCLI that fits, then tests."""

    inputs: Sequence[Any] = ()
    teacher: Mapping[str, float] = {}
    """Test metrics of the teacher, if it was trained in this run."""
    earlier: Mapping[str, Metrics] = {}
    """Test metrics of the runs that came before this one, by their recipes."""
    start: Start | None = None
    part: str = ""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds the arguments of ``Trainer.fit``, so that a configuration written by ``fit`` can be run."""
        super().add_arguments_to_parser(parser)
        skip = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}
        self.fit_arguments = parser.add_method_arguments(Trainer, "fit", skip=skip)

    def before_instantiate_classes(self) -> None:
        """Looks for what the last stage needs before the first begins."""
        super().before_instantiate_classes()
        if self.config.get("quantization"):
            require("onnx", "onnxruntime", "onnxscript")

    def instantiate_classes(self) -> None:
        """Builds the objects, and begins with another run's network where the recipe says so."""
        super().instantiate_classes()
        if self.start is not None:
            self.part = self.start.into(self.model)

    def complete(self, config: Namespace) -> None:
        """Makes what the run begins with: the network of a run before, the teacher."""
        if config.after:
            self.start = self._start(config.after)
        self._complete_teacher(config)

    def _start(self, after: str) -> Start:
        if Path(after).is_dir():
            return Start(Path(after))
        run = EarlierRun(self, after)
        self.earlier = run.make()
        # This run begins as it does after one that was finished before.
        self._set_seed()
        return Start(run.directory)

    def _complete_teacher(self, config: Namespace) -> None:
        """Trains the teacher where a recipe says how and nothing says who it is."""
        arguments = config.model.get("init_args") or Namespace()
        if not config.teacher or arguments.get("teacher") is not None:
            return
        if "teacher" not in arguments:
            raise ValueError(f"teacher={config.teacher}: the model learns from none; it must be a DistillationModule.")
        run = TeacherRun(self, config.teacher)
        self.teacher = run.fit_and_test()
        arguments.teacher = run.save()
        # The student begins as it does without a teacher to be trained before.
        self._set_seed()

    def adapt_logger(self, logger: Namespace) -> None:
        """Puts the baseline's W&B run and this one into one group."""
        super().adapt_logger(logger)
        if logger.class_path.endswith(".WandbLogger"):
            logger.init_args.name = logger.init_args.get("name") or self.label
            given = logger.get("dict_kwargs") or {}
            logger["dict_kwargs"] = {"group": self.group, **given}

    @property
    def label(self) -> str:
        """What W&B calls the run."""
        return f"{self.run_name} compressed"

    @property
    def group(self) -> str:
        """What W&B calls the runs of one job."""
        return f"{self.run_name} {self.directory.name}"

    def fit_and_test(self) -> Metrics:
        """Fits the model and tests the best of it; closes the loggers' runs."""
        with self.refusals():
            given = {name: self.config_init.get(name) for name in self.fit_arguments}
            self.trainer.fit(self.model, datamodule=self.datamodule, **given)
        return self.test(ckpt_path=_best(self.trainer))

    def test(self, ckpt_path: str | None = None) -> Metrics:
        """Tests the model as it is, or as in a checkpoint, and sees what its deployable part is called with."""
        with self.refusals(), seen_inputs(self.model.get_submodule(self.deployable)) as self.inputs:
            metrics = self._tested(self.trainer, self.model, ckpt_path)
        _finish(self.trainer)
        return metrics

    @property
    def deployable(self) -> str:
        """Name of the part of the model that is deployed: what the techniques' targets say."""
        techniques = (self.config_init.get(key) for key in reversed(TECHNIQUES))
        named = (t.targets.module for t in techniques if getattr(t, "targets", None))
        return next((module for module in named if module), self.part)

    def shrink(self) -> Metrics:
        """Removes channels that were pruned, and tests what is left."""
        pattern = getattr(self.config_init.get("pruning"), "pattern", None)
        quantized = self.config_init.get("quantization") is not None
        log = lc.RemovalLog()
        if isinstance(pattern, lc.Channels) and quantized:
            rank_zero_warn(
                "Channels stay, as zeros, in a network of integers: give integers a recipe of their own (after)."
            )
        elif isinstance(pattern, lc.Channels) and self._is_seen("Channels are not removed"):
            with self.refusals():
                log = remove_channels_(self.model.get_submodule(self.deployable), self.inputs[0])
        if not self.trainer.is_global_zero:
            return {}
        whole = log if self.start is None else self.start.log.then(log)
        if whole.cuts:
            whole.save(self.directory / REMOVAL)
        metrics = self._tested(self._plain_trainer(), self.model) if log.cuts else {}
        _warn_of_chance(metrics, self.model.hparams.get("num_classes"))
        return metrics

    def pack(self) -> lc.PackedFile | None:
        """Writes a compressed model's weights as ``model.packed``."""
        made = self.start is not None or any(self.config_init.get(key) for key in TECHNIQUES)
        if not made or not self.trainer.is_global_zero:
            return None
        return lc.save_packed(lc.finalize(self.model, module=self.deployable).cpu(), self.directory / NETWORK)

    def export(self) -> Files | None:
        """Writes a quantized model as files, and tests the file with integers in the model's place."""
        if self.config_init.get("quantization") is None or not self.trainer.is_global_zero:
            return None
        if not self._is_seen("No file of integers is written"):
            return None
        with self.refusals():
            integers, floats = write_files(self.model, self.deployable, self.inputs[0], self.directory)
            file = in_place_of(self.model, self.deployable, integers, self.inputs[0])
            return Files(integers, floats, self._tested(self._plain_trainer(), file))

    def _is_seen(self, otherwise: str) -> bool:
        """Whether the test has shown what the deployable part is called with; says what follows if it has not."""
        if not self.inputs:
            part = f"{self.deployable!r}" if self.deployable else "the model"
            rank_zero_warn(f"{otherwise}: test_step does not call {part} as a whole, so its inputs are not known.")
        return bool(self.inputs)

    def _plain_trainer(self) -> Trainer:
        """A Trainer for what is made of the model, without techniques, which would look for layers in it."""
        limit = self.trainer.limit_test_batches
        return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, limit_test_batches=limit)

    def _tested(self, trainer: Trainer, model: LightningModule, ckpt_path: str | None = None) -> Metrics:
        if not is_overridden("test_step", model):
            return {}
        found = trainer.test(model, datamodule=self.datamodule, ckpt_path=ckpt_path, verbose=False)
        return {name: value for part in found for name, value in part.items()}


class SideRun(RunCLI):
    """A run that belongs to another, in whose directory it is.

    Args:
        main: The other run.
        name: What it is called in that directory and in W&B.
        args: Its configuration.
    """

    def __init__(self, main: RunCLI, name: str, args: Any) -> None:
        self.main, self.name = main, name
        super().__init__(args=args, run=False, run_name=main.run_name)

    @property
    def label(self) -> str:
        """What W&B calls the run."""
        return f"{self.run_name} {self.name}"

    @property
    def group(self) -> str:
        """That of the main run."""
        return self.main.group

    def make_directory(self) -> Path:
        """A directory inside that of the main run."""
        return self.main.directory / self.name

    @property
    def log_directory(self) -> Path:
        """That of the main run, so that one ``wandb sync`` has both."""
        return self.main.log_directory


class TeacherRun(SideRun):
    """The run of the teacher's recipe.

    Args:
        main: The run whose student learns from it.
        recipe: Path or name of the recipe.
    """

    def __init__(self, main: RunCLI, recipe: str) -> None:
        super().__init__(main, "teacher", [f"--config={find(recipe)}"])

    def save(self) -> str:
        """Writes the weights that were tested as a checkpoint, and says where."""
        path = str(self.directory / "teacher.ckpt")
        self.trainer.save_checkpoint(path, weights_only=True)
        return path


class EarlierRun(SideRun):
    """The run of the recipe whose network the main run begins with.

    Args:
        main: That run.
        recipe: Path or name of the recipe.
    """

    def __init__(self, main: RunCLI, recipe: str) -> None:
        self.recipe = title(find(recipe))
        super().__init__(main, BEFORE, [f"--config={find(recipe)}"])

    def make(self) -> dict[str, Metrics]:
        """Fits, tests and packs; test metrics of this run and those before it, by their recipes."""
        fitted = self.fit_and_test()
        smaller = self.shrink()
        self.pack()
        return {**self.earlier, self.recipe: smaller or fitted}


class Baseline(SideRun):
    """The same run without techniques, and without a teacher.

    Args:
        main: The run to compare with.
    """

    def __init__(self, main: RunCLI) -> None:
        config = main.config.clone()
        self.what = config.baseline
        config.pop("config", None)
        for key in (*TECHNIQUES, "ckpt_path", "teacher", "after"):
            config[key] = None
        config["baseline"] = "skip"
        super().__init__(main, "baseline", config)
        if isinstance(self.model, lc.DistillationModule):
            self.model = self.model.student

    def own_callbacks(self) -> list[Callback]:
        """None but the record."""
        return [self.record]

    def metrics(self) -> Metrics:
        """Test metrics of the model fitted alike, or as it starts."""
        return self.fit_and_test() if self.what == "fit" else self.test()


def _warn_of_chance(metrics: Metrics, num_classes: int | None) -> None:
    """Says so if a network has forgotten what it had learned."""
    accuracy = next((value for name, value in metrics.items() if name.endswith("acc")), None)
    if accuracy is not None and num_classes and accuracy < 1.5 / num_classes:
        rank_zero_warn(
            f"An accuracy of {accuracy:.4f} is that of chance with {num_classes} classes: prune less, over more of the "
            "run (pruning.schedule.end), or train on afterwards (after)."
        )


def _best(trainer: Trainer) -> str | None:
    """The best model that a monitored checkpoint has kept; without one, the model as it is counts."""
    kept = (c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor)
    return next((path for path in kept if path), None)


def _finish(trainer: Trainer) -> None:
    """Ends the runs of loggers that have one open per process, so that the next run gets its own."""
    for logger in trainer.loggers:
        experiment: Any = getattr(logger, "_experiment", None)
        if trainer.is_global_zero and hasattr(experiment, "finish"):
            experiment.finish()
