"""One stage of the command ``run``: fit, test, remove channels, pack and export."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.cli.compression import TECHNIQUES, CompressionCLI
from lightning_compress.cli.finished_run import NETWORK_FILE, REMOVAL_FILE, FinishedRun, remove_channels_
from lightning_compress.cli.measurements import dense_bytes, largest_weights
from lightning_compress.cli.onnx_evaluation import (
    OnnxEvaluation,
    capture_inputs,
    export_int8_and_fp32,
    time_files,
    with_module,
    with_onnx_module,
)
from lightning_compress.export.requirements import require
from lightning_compress.trainer.queries import callbacks_of

Metrics = dict[str, float]


class StageCLI(CompressionCLI):
    """CompressionCLI with the steps of a stage.

    Attributes:
        inputs: Captured arguments of the deployed module, one ``(args, kwargs)`` pair; empty before the test.
        previous_run: Run that the stage continues from, if any.
        loaded_module: Name of the submodule that the network of the previous run was loaded into.
        initial_num_bytes: Bytes of the deployed module before any channel was removed.
        initial_weights: Largest weights of the deployed module at the start of the fit.
        tested_checkpoint: Checkpoint that was tested; ``None`` stands for the final weights.
        job_type: Type of the run in W&B.
    """

    inputs: Sequence[Any] = ()
    previous_run: FinishedRun | None = None
    loaded_module: str = ""
    initial_num_bytes: int = 0
    tested_checkpoint: str | None = None
    job_type = "compress"

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of ``Trainer.fit``, so that a configuration written by ``fit`` can be run."""
        super().add_arguments_to_parser(parser)
        skip = {"model", "train_dataloaders", "val_dataloaders", "datamodule"}
        self.fit_arguments = parser.add_method_arguments(Trainer, "fit", skip=skip)

    def before_instantiate_classes(self) -> None:
        """Check that the packages for the export are installed before the training starts."""
        super().before_instantiate_classes()
        if self.config.get("quantization"):
            require("onnx", "onnxruntime", "onnxscript")

    def instantiate_classes(self) -> None:
        """Instantiate all objects and load the network of the previous run."""
        self.initial_weights: dict[str, Tensor] = {}
        super().instantiate_classes()
        sizes = {name: dense_bytes(module) for name, module in self.model.named_modules()}
        if self.previous_run is not None:
            self.loaded_module = self.previous_run.load_into(self.model)
        # Modules that are made in configure_model do not exist yet.
        self.initial_num_bytes = sizes.get(self.deployed_module, 0)
        if self.deployed_module in sizes:
            self.initial_weights = largest_weights(self.model.get_submodule(self.deployed_module))

    def configure_logger(self, logger: Namespace) -> None:
        """Name the W&B run and add it to the group of the command."""
        super().configure_logger(logger)
        if logger.class_path.endswith(".WandbLogger"):
            logger.init_args.name = logger.init_args.get("name") or self.label
            given = logger.get("dict_kwargs") or {}
            config = self._subcommand_config(self.config)
            tags = [key for key in TECHNIQUES if key != "monitor" and config.get(key)]
            tags += ["distillation"] if config.model.class_path.endswith(".DistillationModule") else []
            defaults: dict[str, Any] = {"group": self.group, "job_type": self.job_type, "tags": tags}
            # The environment is stronger than a recipe. W&B reads it once, and runs of a command are opened later too.
            mode = os.environ.get("WANDB_MODE") or ("offline" if logger.init_args.get("offline") else None)
            if mode is not None:
                logger.init_args.offline = mode in ("offline", "dryrun")
                defaults["mode"] = "offline" if logger.init_args.offline else mode
            logger["dict_kwargs"] = {**defaults, **given}

    @property
    def label(self) -> str:
        """Name of the run in W&B."""
        return f"{self.run_name} compressed"

    @property
    def group(self) -> str:
        """Name of the group in W&B that all runs of the command share."""
        return f"{self.run_name} {self.directory.name}"

    def fit_and_test(self) -> Metrics:
        """Fit the model and test its best checkpoint; the runs of the loggers stay open."""
        with self.exit_on_config_error():
            given = {name: self.config_init.get(name) for name in self.fit_arguments}
            self.trainer.fit(self.model, datamodule=self.datamodule, **given)
        self.tested_checkpoint = _best_checkpoint(self.trainer)
        return self.test(ckpt_path=self.tested_checkpoint)

    def test(self, ckpt_path: str | None = None) -> Metrics:
        """Test the model or a checkpoint of it, and capture the inputs of the deployed module."""
        deployed = self.model.get_submodule(self.deployed_module)
        with self.exit_on_config_error(), capture_inputs(deployed) as self.inputs:
            return self._evaluate(self.trainer, self.model, ckpt_path)

    @property
    def num_test_samples(self) -> int | None:
        """Number of samples of the last test, or ``None`` if it is not known."""
        return self.record.num_test_samples if self.trainer.world_size == 1 else None

    @property
    def seed(self) -> int | None:
        """Seed of the run."""
        given = self._get(self.config, "seed_everything")
        return given if isinstance(given, int) and not isinstance(given, bool) else None

    def schedules(self) -> dict[str, tuple[tuple[int, float], ...]]:
        """Return the totals that the monitor has logged, by name."""
        monitor = next((c for c in callbacks_of(self.trainer) if isinstance(c, lc.CompressionMonitor)), None)
        return {} if monitor is None else monitor.history()

    def deployed(self) -> nn.Module:
        """Return a finalized copy of the deployed module on the CPU."""
        return lc.finalize(self.model, module=self.deployed_module).cpu()

    @property
    def deployed_module(self) -> str:
        """Name of the submodule that is deployed, from the targets of the techniques."""
        techniques = (self.config_init.get(key) for key in reversed(TECHNIQUES))
        modules = (t.targets.module for t in techniques if getattr(t, "targets", None))
        return next((module for module in modules if module), self.loaded_module)

    @property
    def backend(self) -> lc.Backend:
        """Runtime for which the model is quantized."""
        return getattr(self.config_init.get("quantization"), "backend", lc.OnnxRuntime())

    @property
    def removes_channels(self) -> bool:
        """True if channels are physically removed after the fit."""
        pattern = getattr(self.config_init.get("pruning"), "pattern", None)
        given = self.config_init.get("shrink")
        return isinstance(pattern, (lc.Channels, lc.Depth)) if given is None else given

    @property
    def half(self) -> Sequence[str]:
        """Groups of tensors that the packed file rounds to float16."""
        given = self.config_init.get("half")
        return getattr(self.config_init.get("size_budget"), "half", ()) if given is None else given

    def shrink(self) -> Metrics:
        """Physically remove pruned channels and test the remaining network."""
        quantized = self.config_init.get("quantization") is not None
        log = lc.RemovalLog()
        if self.removes_channels and quantized:
            rank_zero_warn(
                "Channels are masked but not removed, because removal from a quantized network is not supported: "
                "quantize in a recipe of its own, with 'after'."
            )
        elif self.removes_channels and self._has_inputs("Channels are not removed"):
            log = remove_channels_(self.model.get_submodule(self.deployed_module), self.inputs[0])
        if not self.trainer.is_global_zero:
            return {}
        # The log is relative to the original network, so that the next stage can build that one and replay it.
        full_log = log if self.previous_run is None else self.previous_run.log.then(log)
        if full_log.cuts:
            full_log.save(self.directory / REMOVAL_FILE)
        metrics = self._evaluate(self._plain_trainer(), self.model) if log.cuts else {}
        _warn_of_chance_level(metrics, self.model.hparams.get("num_classes"))
        return metrics

    def pack(self) -> lc.PackedFile | None:
        """Write the weights of a compressed model to ``model.packed``."""
        compressed = self.previous_run is not None or any(self.config_init.get(key) for key in TECHNIQUES)
        if not compressed or not self.trainer.is_global_zero:
            return None
        return lc.save_packed(self.deployed(), self.directory / NETWORK_FILE, half=self.half)

    def test_rounded(self, packed: lc.PackedFile | None) -> Metrics:
        """Test the network that is loaded from the packed file; empty if the file rounds nothing."""
        if packed is None or not self.half:
            return {}
        network = lc.load_packed(packed.path, into=self.deployed())
        return self._evaluate(self._plain_trainer(), with_module(self.model, self.deployed_module, network))

    def export(self) -> OnnxEvaluation | None:
        """Export a quantized model to ONNX and test the exported file."""
        if self.config_init.get("quantization") is None or not self.trainer.is_global_zero:
            return None
        if not self._has_inputs("No INT8 ONNX model is exported"):
            return None
        int8, fp32 = export_int8_and_fp32(
            self.model, self.deployed_module, self.inputs[0], self.directory, self.backend
        )
        evaluated = with_onnx_module(self.model, self.deployed_module, int8.path, self.inputs[0])
        metrics = self._evaluate(self._plain_trainer(), evaluated)
        return OnnxEvaluation(int8, fp32, metrics, time_files((fp32.path, int8.path), self.inputs[0]))

    def _has_inputs(self, consequence: str) -> bool:
        """Return True if the test has captured the inputs of the deployed module, and warn otherwise."""
        if not self.inputs:
            module = f"{self.deployed_module!r}" if self.deployed_module else "the model"
            rank_zero_warn(f"{consequence}: test_step does not call {module} itself, so its inputs are unknown.")
        return bool(self.inputs)

    def _plain_trainer(self) -> Trainer:
        """Return a Trainer without techniques: their targets may no longer exist in the compressed model."""
        limit = self.trainer.limit_test_batches
        return Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, limit_test_batches=limit)

    def _evaluate(self, trainer: Trainer, model: LightningModule, ckpt_path: str | None = None) -> Metrics:
        if not is_overridden("test_step", model):
            return {}
        results = trainer.test(model, datamodule=self.datamodule, ckpt_path=ckpt_path, verbose=False)
        return {name: value for result in results for name, value in result.items()}


def _warn_of_chance_level(metrics: Metrics, num_classes: int | None) -> None:
    accuracy = next((value for name, value in metrics.items() if name.endswith("acc")), None)
    if accuracy is not None and num_classes and accuracy < 1.5 / num_classes:
        rank_zero_warn(
            f"The accuracy of {accuracy:.4f} is at chance level for {num_classes} classes: prune less, prune over more "
            "of the run (pruning.schedule.end), or fine-tune afterwards (after)."
        )


def _best_checkpoint(trainer: Trainer) -> str | None:
    """Return the path of the best monitored checkpoint; ``None`` stands for the final weights."""
    paths = (c.best_model_path for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint) and c.monitor)
    return next((path for path in paths if path), None)
