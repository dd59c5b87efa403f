"""LightningCLI with a named key for every technique."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import yaml
from jsonargparse import Namespace
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

import lightning_compress
import lightning_compress.data
import lightning_compress.models.classification
from lightning_compress.cli.checkpoint_io import BesideThenRename
from lightning_compress.cli.errors import one_sentence
from lightning_compress.cli.parser import OneSentenceParser
from lightning_compress.cli.run_directory import run_directory, write_new

TECHNIQUES = {
    "pruning": "Pruning",
    "clustering": "WeightClustering",
    "quantization": "QuantizationAwareTraining",
    "monitor": "CompressionMonitor",
}
"""Key in a recipe: public name of the callback that it adds. A technique needs one line here."""

# What Lightning takes for a checkpoint besides a path.
_KEYWORDS = re.compile(r"best$|last$|hpc$|registry")


class CompressionCLI(LightningCLI):
    """LightningCLI in which techniques are named keys, such as ``pruning: {sparsity: 0.9}``.

    A key that is absent or null adds nothing. Files stack in any order (``--config a.yaml --config b.yaml``), and
    ``--pruning.sparsity=0.5`` overrides them. Every run has a directory of its own under ``runs/``, unless
    ``--trainer.default_root_dir`` says where. Wrong configuration is told in one sentence, and exits with 2.

    Args:
        *args: As LightningCLI's.
        run_name: Directory under ``runs/``; the subcommand by default.
        **kwargs: As LightningCLI's.
    """

    def __init__(self, *args: Any, run_name: str | None = None, **kwargs: Any) -> None:
        self.run_name = run_name
        self.directory = Path("runs")
        self.record = RunRecord()
        kwargs.setdefault("parser_class", OneSentenceParser)
        kwargs.setdefault("save_config_callback", None)  # RunRecord does that, where it cannot collide
        with self.refusals():
            super().__init__(*args, **kwargs)

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Tells in one sentence what is refused, and leaves no empty directory behind."""
        try:
            with one_sentence(lambda: self.record.started):
                yield
        except SystemExit:
            with suppress(OSError):
                self.directory.rmdir()
            raise

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Adds a key for each technique, and those that only ``run`` reads."""
        for key, name in TECHNIQUES.items():
            technique = getattr(lightning_compress, name)
            summary = (technique.__doc__ or "").partition("\n")[0]
            parser.add_argument(f"--{key}", type=technique | None, default=None, help=summary)
        parser.add_argument(
            "--baseline",
            type=Literal["fit", "test", "skip"],
            default="skip",
            help="What 'run' compares with: the same run without techniques or teacher, the model it starts from, or "
            "nothing.",
        )
        parser.add_argument(
            "--teacher",
            type=str | None,
            default=None,
            help="Recipe of the teacher of a DistillationModule, which 'run' runs first if model.teacher names none.",
        )
        parser.add_argument(
            "--after",
            type=str | None,
            default=None,
            help="Recipe whose network 'run' begins with, which it runs first, or the directory of a finished run.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parses; unlike LightningCLI's does not warn that a command of ours has handed its arguments on."""
        if isinstance(args, (dict, Namespace)):
            self.config = parser.parse_object(args)
        else:
            self.config = parser.parse_args(args if args is not None else sys.argv[1:])

    def _parse_ckpt_path(self) -> None:
        """Nothing: Lightning would let a checkpoint's hyperparameters silently override the configuration's."""

    def before_instantiate_classes(self) -> None:
        """Looks for the checkpoint before anything is built or written."""
        path = self._get(self.config, "ckpt_path")
        if path and not _KEYWORDS.match(str(path)) and "://" not in str(path) and not Path(path).exists():
            raise ValueError(f"ckpt_path={path} does not exist: give the path of a checkpoint.")

    def instantiate_classes(self) -> None:
        """Builds the objects, with loggers that write into the run's directory.

        The configuration that is kept and written says nothing of that directory, so that it can be run again.
        """
        portable = self.config
        chosen = self._get(portable, "trainer").get("default_root_dir")
        self.directory = Path(chosen) if chosen else self.make_directory()
        self.record.place(self.directory, self._parser(self.subcommand).dump(self._own(portable), skip_none=False))
        self.config = portable.clone()
        for logger in _loggers(self._own(self.config)):
            self.adapt_logger(logger)
        self.complete(self._own(self.config))
        super().instantiate_classes()
        self.config = portable

    def complete(self, config: Namespace) -> None:
        """Completes the configuration before objects are built of it, in the run's directory."""

    def make_directory(self) -> Path:
        """Makes the directory of the run."""
        return run_directory(self.run_name or self.subcommand or "run", rank=_rank())

    @property
    def log_directory(self) -> Path:
        """Where loggers write."""
        return self.directory

    def adapt_logger(self, logger: Namespace) -> None:
        """Completes the configuration of a logger, ``class_path`` and ``init_args``."""
        arguments = logger.get("init_args") or Namespace()
        if arguments.get("save_dir", "") in (None, "."):
            arguments.save_dir = str(self.log_directory)
        if arguments.get("offline") and arguments.get("log_model"):
            rank_zero_warn("log_model is dropped: WandbLogger refuses it with offline=True.")
            arguments.log_model = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Builds the Trainer with the techniques' callbacks after the user's."""
        given = self._get(self.config_init, "trainer")
        callbacks = given.get("callbacks") or []
        given["callbacks"] = [*(callbacks if isinstance(callbacks, list) else [callbacks]), *self.own_callbacks()]
        kwargs.setdefault("default_root_dir", str(self.directory))
        trainer = super().instantiate_trainer(**kwargs)
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath is None:
                checkpoint.dirpath = str(self.directory / "checkpoints")
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = BesideThenRename()
        return trainer

    def own_callbacks(self) -> list[Callback]:
        """The techniques that the configuration has, and what keeps the run's record."""
        techniques = (self._get(self.config_init, key) for key in TECHNIQUES)
        return [*(callback for callback in techniques if callback is not None), self.record]

    def _own(self, config: Namespace) -> Namespace:
        return config.get(str(self.subcommand), config)


class RunRecord(Callback):
    """Writes the run's configuration where it belongs, and knows whether a batch has been run."""

    def __init__(self) -> None:
        self.started = False
        self.directory = Path()
        self.config = ""

    def place(self, directory: Path, config: str) -> None:
        """Tells where to write what.

        Args:
            directory: The run's.
            config: The configuration as YAML.
        """
        self.directory, self.config = directory, config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Writes ``config.yaml`` and hands the configuration to the loggers, once."""
        if self.config and trainer.is_global_zero:
            write_new(self.directory / "config.yaml", self.config)
            for logger in trainer.loggers:
                logger.log_hyperparams({"config": yaml.safe_load(self.config)})
        self.config = ""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """While the user's code runs, errors are of the code, not of the configuration."""
        self.started = True

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Callbacks may still refuse the configuration in ``on_train_start``."""
        self.started = False

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """From here on errors keep their traceback."""
        self.started = True

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """As in training."""
        self.started = True

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """As in training."""
        self.started = True

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """As in training."""
        self.started = True


def _rank() -> int:
    """Of this process among all, as far as it is known before the Trainer is."""
    return int(getattr(rank_zero_only, "rank", 0))


def _loggers(config: Namespace) -> list[Namespace]:
    loggers = config.trainer.get("logger")
    return [logger for logger in (loggers if isinstance(loggers, list) else [loggers]) if isinstance(logger, Namespace)]
