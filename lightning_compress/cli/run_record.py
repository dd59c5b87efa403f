"""Callback that writes the configuration of a run and tracks if a batch has been run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_compress.cli.run_directory import write_new
from lightning_compress.reporting.settings import flat
from lightning_compress.trainer.batches import num_samples_of


class RunRecord(Callback):
    """Write the configuration to the run directory and to the loggers.

    Attributes:
        started: True once a batch has been run: later errors are bugs and keep their traceback, earlier ones are
            errors of the configuration.
        num_test_samples: Number of samples of the last test on this rank.
    """

    def __init__(self) -> None:
        self.started = False
        self.num_test_samples: int | None = None
        self.directory = Path()
        self.config = ""

    def set_config(self, config: str, directory: Path) -> None:
        """Set the configuration to write in the next ``setup``.

        Args:
            config: Configuration as YAML.
            directory: Run directory.
        """
        self.config, self.directory = config, directory

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write ``config.yaml`` and log the configuration as hyperparameters, once."""
        if self.config and trainer.is_global_zero:
            write_new(self.directory / "config.yaml", self.config)
            for logger in trainer.loggers:
                logger.log_hyperparams(flat(yaml.safe_load(self.config)))
        self.config = ""

    def on_sanity_check_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set ``started``: the sanity check runs user code."""
        self.started = True

    def on_sanity_check_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reset ``started``: callbacks may still reject the configuration in ``on_train_start``."""
        self.started = False

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Set ``started``."""
        self.started = True

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Set ``started``."""
        self.started = True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the samples of this test from zero."""
        self.num_test_samples = 0

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *args: Any) -> None:
        """Set ``started`` and count the samples of the batch, by its first tensor."""
        self.started = True
        size = num_samples_of(batch)
        is_counted = self.num_test_samples is not None and size is not None
        self.num_test_samples = self.num_test_samples + size if is_counted else None  # type: ignore[operator]

    def on_predict_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """Set ``started``."""
        self.started = True
