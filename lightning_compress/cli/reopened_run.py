"""A finished run, built again from its configuration and checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback

import lightning_compress as lc
from lightning_compress.cli.finished_run import NETWORK_FILE, PREVIOUS_RUN, REMOVAL_FILE, FinishedRun
from lightning_compress.cli.onnx_evaluation import with_onnx_module
from lightning_compress.cli.run_directory import newest_checkpoint
from lightning_compress.cli.stage_cli import Metrics, StageCLI
from lightning_compress.reporting.run_report import RunReport


class ReopenedRun(StageCLI):
    """StageCLI of a finished run; its model has the weights of the tested checkpoint once :meth:`restore` was called.

    Args:
        directory: Directory of the run.
        report: Report of the run.
        checkpoint: Another checkpoint than the one that was tested.
        out: Directory to write to, by default that of the run.

    Raises:
        ValueError: If the run has no checkpoint or no configuration.
    """

    has_checkpoint = True

    def __init__(
        self, directory: Path, report: RunReport, *, checkpoint: Path | None = None, out: Path | None = None
    ) -> None:
        self.finished, self.report, self.out = directory, report, out or directory
        self.checkpoint = checkpoint or (directory / report.checkpoint if report.checkpoint else None)
        self.checkpoint = self.checkpoint or newest_checkpoint(directory)
        config = directory / "config.yaml"
        for path in (config, self.checkpoint) if self.has_checkpoint else (config,):
            if path is None or not path.is_file():
                raise ValueError(f"{path or directory / 'checkpoints'} does not exist: give a run with a checkpoint.")
        quiet = ["--trainer.logger=false", "--trainer.enable_progress_bar=false"]
        one_device = ["--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto"]
        unused = ["--baseline=skip", "--teacher=null", "--ckpt_path=null"]
        super().__init__(args=[f"--config={config}", *quiet, *one_device, *unused], run=False, run_name=report.name)

    def make_directory(self) -> Path:
        """Return the directory to write to."""
        return self.out

    def prepare_config(self, config: Namespace) -> None:
        """Find the network of the previous stage, whose channels are removed before the checkpoint is loaded."""
        config.trainer.default_root_dir = None
        self.record.set_config("", self.out)
        previous = self.finished / PREVIOUS_RUN
        if not config.after:
            return
        if (previous / NETWORK_FILE).is_file():
            self.previous_run = FinishedRun(previous)
        elif Path(config.after).is_dir():
            self.previous_run = FinishedRun(Path(config.after))
        else:
            raise ValueError(f"{self.finished}: the previous stage, after={config.after}, is not there any more.")

    def compression_callbacks(self) -> list[Callback]:
        """Return the callbacks of the techniques, without a monitor."""
        return [callback for callback in super().compression_callbacks() if not _is_monitor(callback)]

    def restore(self) -> Metrics:
        """Load the checkpoint, test it, capture the inputs of the deployed module and remove masked channels."""
        metrics = self.restore_fitted()
        return self.remove_channels() or metrics

    def restore_fitted(self) -> Metrics:
        """Load the checkpoint, test it, and capture the inputs of the deployed module."""
        metrics = self.test(ckpt_path=str(self.checkpoint) if self.has_checkpoint else None)
        self.directory = self.out
        return metrics

    def remove_channels(self) -> Metrics:
        """Remove masked channels as the run did, and return the test metrics without them; empty if it removed none."""
        return self.shrink() if (self.finished / REMOVAL_FILE).is_file() else {}

    def test_onnx(self, path: Path) -> Metrics:
        """Return the test metrics of an ONNX file of the deployed module, run by ONNX Runtime."""
        if not self.inputs:
            self.restore()
        if not self.inputs:
            raise ValueError(f"{path.name} cannot be tested: test_step does not call the deployed module itself.")
        evaluated: Any = with_onnx_module(self.model, self.deployed_module, path, self.inputs[0])
        return self._evaluate(self._plain_trainer(), evaluated)


def _is_monitor(callback: Callback) -> bool:
    return isinstance(callback, lc.CompressionMonitor)
