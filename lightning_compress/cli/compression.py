"""LightningCLI with a named key for every technique."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from jsonargparse import Namespace
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

import lightning_compress
import lightning_compress.data
import lightning_compress.models.classification
from lightning_compress.cli.checkpoint_io import AtomicCheckpointIO
from lightning_compress.cli.config_checks import (
    check_checkpoint,
    check_required_arguments,
    check_specifications,
    check_trainer,
)
from lightning_compress.cli.config_errors import explain
from lightning_compress.cli.config_files import check_config_files
from lightning_compress.cli.constructor_errors import unwrapped_constructor_errors
from lightning_compress.cli.errors import exit_on_config_error
from lightning_compress.cli.parser import CompressionArgumentParser
from lightning_compress.cli.run_directory import run_directory
from lightning_compress.cli.run_record import RunRecord

TECHNIQUES = {
    "pruning": "Pruning",
    "clustering": "WeightClustering",
    "size_budget": "SizeBudget",
    "quantization": "QuantizationAwareTraining",
    "monitor": "CompressionMonitor",
}
"""Configuration key to the public name of the callback that it adds."""


class CompressionCLI(LightningCLI):
    """LightningCLI with compression techniques as named keys, such as ``pruning: {sparsity: 0.9}``.

    A key that is absent or null adds no callback, except that every technique comes with a
    :class:`CompressionMonitor`.
    Configuration files are merged in the order given (``--config a.yaml --config b.yaml``), and flags such as
    ``--pruning.sparsity=0.5`` override single keys. Every run has a directory of its own under ``runs/`` unless
    ``--trainer.default_root_dir`` is set. An invalid configuration is reported in one line, with exit code 2.

    Args:
        *args: Positional arguments of LightningCLI.
        run_name: Name of the directory under ``runs/``; the subcommand by default.
        **kwargs: Keyword arguments of LightningCLI.

    Attributes:
        directory: Directory of the run.

    Raises:
        SystemExit: With code 2 for an invalid configuration.

    >>> import tempfile
    >>> model = ["--model=ClassificationModule", "--model.model=lenet5", "--model.num_classes=10"]
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     trainer = [f"--trainer.default_root_dir={directory}", "--trainer.accelerator=cpu", "--trainer.logger=false"]
    ...     cli = CompressionCLI(args=[*model, "--pruning.sparsity=0.9", *trainer], run=False)
    >>> type(cli.trainer.callbacks[0]).__name__, cli.config_init.pruning.sparsity
    ('Pruning', 0.9)
    """

    def __init__(self, *args: Any, run_name: str | None = None, **kwargs: Any) -> None:
        self.run_name = run_name
        self.directory = Path("runs")
        self.record = RunRecord()
        kwargs.setdefault("parser_class", CompressionArgumentParser)
        # RunRecord writes the configuration instead, under a name that does not exist yet.
        kwargs.setdefault("save_config_callback", None)
        with self.exit_on_config_error():
            super().__init__(*args, **kwargs)

    @contextmanager
    def exit_on_config_error(self) -> Iterator[None]:
        """Report configuration errors in one line, exit with code 2 and remove an empty run directory."""
        try:
            with exit_on_config_error(lambda: self.record.started):
                yield
        except SystemExit:
            with suppress(OSError):
                self.directory.rmdir()
            raise

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add a key for every technique, and the keys that only the command ``run`` uses."""
        for key, name in TECHNIQUES.items():
            technique = getattr(lightning_compress, name)
            summary = (technique.__doc__ or "").partition("\n")[0]
            parser.add_argument(f"--{key}", type=technique | None, default=None, help=summary)
        parser.add_argument(
            "--baseline",
            type=Literal["fit", "test", "skip"],
            default="skip",
            help="Baseline of 'run': train the same configuration without techniques or teacher, test the initial "
            "model, or no baseline.",
        )
        parser.add_argument(
            "--shrink",
            type=bool | None,
            default=None,
            help="Remove channels that are zero, or that only zero weights read, after the fit of 'run'; by default "
            "with the patterns Channels and Depth.",
        )
        parser.add_argument(
            "--half",
            type=list[Literal["codebooks", "norms", "biases"]] | None,
            default=None,
            help="Groups of tensors that the packed file of 'run' rounds to float16; by default those of size_budget.",
        )
        parser.add_argument(
            "--teacher",
            type=str | None,
            default=None,
            help="Recipe that 'run' runs first to train the teacher of a DistillationModule, unless model.teacher is "
            "set.",
        )
        parser.add_argument(
            "--after",
            type=str | None,
            default=None,
            help="Recipe that 'run' runs first to continue with its network, or directory of a finished run.",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse arguments, without LightningCLI's warning about arguments that are not from the command line."""
        if isinstance(args, (dict, Namespace)):
            given: Any = args
        else:
            given = [_complete_logger(argument) for argument in (args if args is not None else sys.argv[1:])]
            check_config_files(given)
        try:
            self.config = parser.parse_args(given) if isinstance(given, list) else parser.parse_object(given)
        except argparse.ArgumentError as error:
            given = given.as_dict() if isinstance(given, Namespace) else given
            raise ValueError(explain(parser, given, error)) from None

    def _parse_ckpt_path(self) -> None:
        """Do nothing: LightningCLI would silently override the configuration with a checkpoint's hyperparameters."""

    def before_instantiate_classes(self) -> None:
        """Check that the checkpoint exists before anything is built or written."""
        check_trainer(self._get(self.config, "trainer"))
        for key, name in TECHNIQUES.items():
            technique, given = getattr(lightning_compress, name), self._get(self.config, key)
            check_required_arguments(key, technique, given)
            check_specifications(key, technique, given)
        check_checkpoint(self._get(self.config, "ckpt_path"))
        self.check_unused_keys()

    def check_unused_keys(self) -> None:
        """Check that no key is set that only the command ``run`` uses.

        Raises:
            ValueError: If the network or the teacher would not be the one that the key names.
        """
        for key in ("after", "teacher"):
            value = self._get(self.config, key) if self.subcommand else None
            if value:
                raise ValueError(
                    f"{key}={value} is a key of the command 'run' and has no effect on {self.subcommand!r}: use "
                    f"'lightning-compress run', or set --{key}=null."
                )

    def instantiate_classes(self) -> None:
        """Instantiate all objects, with loggers that write to the run directory.

        The configuration that is kept and written does not mention the run directory, so it can be run again.
        """
        portable = self.config
        root = self._get(portable, "trainer").get("default_root_dir")
        self.directory = Path(root) if root else self.make_directory()
        config = self._parser(self.subcommand).dump(self._subcommand_config(portable), skip_none=False)
        self.record.set_config(config, self.directory)
        self.config = portable.clone()
        for logger in _loggers(self._subcommand_config(self.config)):
            self.configure_logger(logger)
        self.prepare_config(self._subcommand_config(self.config))
        with unwrapped_constructor_errors():
            super().instantiate_classes()
        self.config = portable

    def prepare_config(self, config: Namespace) -> None:
        """Complete the configuration in place before objects are instantiated; does nothing by default."""

    def make_directory(self) -> Path:
        """Create the run directory."""
        return run_directory(self.run_name or self.subcommand or "run", rank=rank())

    @property
    def log_directory(self) -> Path:
        """Directory that loggers write to."""
        return self.directory

    def configure_logger(self, logger: Namespace) -> None:
        """Complete the configuration (``class_path`` and ``init_args``) of a logger in place."""
        arguments = logger.get("init_args") or Namespace()
        if arguments.get("save_dir", "") in (None, "."):
            arguments.save_dir = str(self.log_directory)
        if arguments.get("offline") and arguments.get("log_model"):
            rank_zero_warn("log_model is ignored: WandbLogger does not support it with offline=True.")
            arguments.log_model = False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Instantiate the Trainer, with the callbacks of the techniques after those of the user."""
        given = self._get(self.config_init, "trainer")
        callbacks = given.get("callbacks") or []
        user_callbacks = callbacks if isinstance(callbacks, list) else [callbacks]
        given["callbacks"] = [*user_callbacks, *self.compression_callbacks()]
        kwargs.setdefault("default_root_dir", str(self.directory))
        trainer = super().instantiate_trainer(**kwargs)
        for checkpoint in trainer.checkpoint_callbacks:
            if isinstance(checkpoint, ModelCheckpoint) and checkpoint.dirpath is None:
                checkpoint.dirpath = str(self.directory / "checkpoints")
        # A plugin that the user has chosen is kept.
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        return trainer

    def compression_callbacks(self) -> list[Callback]:
        """Return the callbacks of the configured techniques, a monitor and the run record."""
        given = {key: self._get(self.config_init, key) for key in TECHNIQUES}
        # Whoever compresses wants to see it, without a key for that.
        if given["monitor"] is None and any(callback is not None for callback in given.values()):
            given["monitor"] = lightning_compress.CompressionMonitor()
        return [*(callback for callback in given.values() if callback is not None), self.record]

    def _subcommand_config(self, config: Namespace) -> Namespace:
        return config.get(str(self.subcommand), config)


def _complete_logger(argument: str) -> str:
    """Return ``--trainer.logger=CSVLogger`` with the directory that the class requires; others as they are."""
    option, _, name = argument.partition("=")
    if option != "--trainer.logger" or not re.fullmatch(r"[\w.]*(?:CSV|TensorBoard)Logger", name):
        return argument
    return f"{option}={{class_path: {name}, init_args: {{save_dir: .}}}}"


def rank() -> int:
    """Return the rank of this process, as far as it is known before the Trainer exists."""
    return int(getattr(rank_zero_only, "rank", 0))


def _loggers(config: Namespace) -> list[Namespace]:
    loggers = config.trainer.get("logger")
    return [logger for logger in (loggers if isinstance(loggers, list) else [loggers]) if isinstance(logger, Namespace)]
