"""The command ``doctor``: check a recipe in a few batches, before an hour is spent on it."""

from __future__ import annotations

import math
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console

import lightning_compress as lc
from lightning_compress.cli.compression import TECHNIQUES
from lightning_compress.cli.measurements import dense_bytes
from lightning_compress.cli.recipes import find, run_name_of
from lightning_compress.cli.routine_messages import hide_routine_messages
from lightning_compress.cli.stage_cli import StageCLI
from lightning_compress.clustering.size_budget import parse_size
from lightning_compress.export.requirements import require
from lightning_compress.quantization.insertion import quantizers_of
from lightning_compress.reporting.units import format_bytes
from lightning_compress.schedules import Schedule
from lightning_compress.targets import Targets, shorten
from lightning_compress.trainer.compression_callback import CompressionCallback, techniques
from lightning_compress.trainer.coverage import measure_coverage

_NUM_BATCHES = 6
# Extras with their packages.
_RUNTIMES = {
    "openvino": ("openvino",),
    "coreml": ("coremltools",),
    "litert": ("litert_torch", "torchao"),
    "executorch": ("executorch", "torchao"),
}
_TIMES = ("begin", "end", "observe", "fake_quantize", "freeze_observers", "freeze_batch_norm")


class ProbeDone(Exception):
    """Raised to end the fit once enough batches were run."""


@dataclass
class FitProbe(Callback):
    """Measures the first batches of a fit, then ends it.

    Attributes:
        num_steps: Optimizer steps that the whole fit would take.
        num_batches: Training batches of an epoch.
        durations: Seconds of each batch.
        rows: Technique, covered share and schedule in steps.
        rest: Sentences on weights that are not covered.
        unquantized_ops: Calls that stay in FP32.
    """

    num_steps: float = 0
    num_batches: float = 0
    durations: list[float] = field(default_factory=list)
    rows: list[tuple[str, str, str]] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)
    unquantized_ops: list[str] = field(default_factory=list)
    _begin: float = 0.0

    __hash__ = object.__hash__

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the length of the fit and what the techniques have found in the model."""
        self.num_steps, self.num_batches = trainer.estimated_stepping_batches, trainer.num_training_batches
        for technique in techniques(trainer):
            name = type(technique).__name__
            covered = technique.covered(pl_module)
            coverage = measure_coverage(pl_module, covered, technique.targets.module, technique.leaves_out)
            share = f"{len(covered)} tensors, {coverage.share:.1%} of the weights"
            self.rows.append((name, share, ", ".join(self._times(technique))))
            if coverage.rest:
                self.rest.append(f"{name} leaves {coverage.describe_rest()} as it is.")
            self.unquantized_ops += getattr(technique, "unquantized_ops", [])

    def on_train_batch_start(self, *args: Any) -> None:
        """Start the clock."""
        self._begin = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop the clock, and end the fit after a few batches."""
        self.durations.append(time.perf_counter() - self._begin)
        if len(self.durations) >= min(_NUM_BATCHES, self.num_batches):
            raise ProbeDone

    def _times(self, technique: CompressionCallback) -> Iterator[str]:
        schedule = getattr(technique, "schedule", None)
        for name in _TIMES:
            given = getattr(schedule, name, None)
            one_shot = isinstance(schedule, Schedule) and schedule.curve == "one_shot"
            if given is not None and not (one_shot and name == "end"):
                yield f"{name} {self._step(given):,.0f}"

    def _step(self, given: int | float | str) -> float:
        if isinstance(given, str):
            per_epoch = self.num_steps / max(self.num_steps / max(self.num_batches, 1), 1)
            return math.ceil(float(given.removesuffix("ep")) * per_epoch)
        return given if isinstance(given, int) else math.ceil(given * self.num_steps)


class DoctorCLI(StageCLI):
    """StageCLI that fits a few batches in a temporary directory, without loggers and with an untrained teacher.

    Args:
        recipe: Path of the recipe.
        arguments: Overrides.
        plain: Leave out all techniques.
    """

    def __init__(self, recipe: Path, arguments: Sequence[str], *, plain: bool = False) -> None:
        self.recipe, self.plain, self.probe = recipe, plain, FitProbe()
        self.temporary = Path(tempfile.mkdtemp(prefix="lightning-compress-"))
        quiet = [f"--trainer.{key}=false" for key in ("logger", "enable_progress_bar", "enable_model_summary")]
        given = [argument for argument in arguments if not argument.startswith("--trainer.logger")]
        super().__init__(args=[f"--config={recipe}", *given, *quiet], run=False, run_name=run_name_of(recipe))

    def make_directory(self) -> Path:
        """Return the temporary directory."""
        return self.temporary

    def prepare_config(self, config: Namespace) -> None:
        """Check that the recipes that this one names exist, and build the teacher without training it."""
        near = [self.recipe.absolute().parent]
        if config.after and not Path(config.after).is_dir():
            find(config.after, near=near)
        arguments = config.model.get("init_args") or Namespace()
        if config.teacher and arguments.get("teacher") is None:
            out = f"--trainer.default_root_dir={self.temporary / 'teacher'}"
            teacher = StageCLI(
                args=[f"--config={find(config.teacher, near=near)}", "--trainer.logger=false", out], run=False
            )
            teacher.trainer.strategy.connect(teacher.model)
            arguments.teacher = str(self.temporary / "teacher.ckpt")
            teacher.trainer.save_checkpoint(arguments.teacher, weights_only=True)

    def compression_callbacks(self) -> list[Callback]:
        """Return the techniques, unless they are left out, and the probe."""
        return [*([] if self.plain else super().compression_callbacks()[:-1]), self.record, self.probe]

    def examine(self) -> FitProbe:
        """Fit a few batches, and remove everything that was written."""
        try:
            with self.exit_on_config_error(), warnings.catch_warnings():
                # The teacher is untrained here.
                warnings.filterwarnings("ignore", message="The teacher .* has an accuracy")
                self.trainer.fit(self.model, datamodule=self.datamodule)
        except ProbeDone:
            pass
        finally:
            shutil.rmtree(self.temporary, ignore_errors=True)
        return self.probe


def doctor(arguments: Sequence[str]) -> None:
    """Check a recipe: ``doctor RECIPE [--key=value ...]``.

    Args:
        arguments: Recipe, followed by overrides as ``--key=value``.
    """
    hide_routine_messages()
    recipe = find(arguments[0])
    cli = DoctorCLI(recipe, arguments[1:])
    probe = cli.examine()
    plain = DoctorCLI(recipe, arguments[1:], plain=True).examine()
    _print(cli, probe, plain)


def _print(cli: DoctorCLI, probe: FitProbe, plain: FitProbe) -> None:
    console = Console()
    for name, covered, times in probe.rows:
        # Lines and not a table, whose cells a narrow terminal would wrap.
        console.print(f"{name}: {covered}; in steps: {times}.", soft_wrap=True, markup=False, highlight=False)
    for line in _findings(cli, probe, plain):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _findings(cli: DoctorCLI, probe: FitProbe, plain: FitProbe) -> Iterator[str]:
    yield f"The fit takes {probe.num_steps:,.0f} steps, {probe.num_batches:,.0f} batches per epoch; the data was read."
    yield from probe.rest
    if probe.unquantized_ops:
        yield f"Unquantized ops (FP32): {shorten(probe.unquantized_ops)}."
    step, plain_step = (statistics.median(p.durations[1:] or p.durations or [0.0]) for p in (probe, plain))
    total = step * probe.num_batches * (cli.trainer.max_epochs or 0)
    yield (
        f"A step takes {1e3 * step:.1f} ms, {step / max(plain_step, 1e-9):.2f} times the step without techniques; "
        f"about {max(total, 0) / 60:.1f} min of training on this machine, without validation."
    )
    module = cli.model.get_submodule(cli.deployed_module)
    expected = expected_bytes(cli, module)
    about = "at most" if cli.config_init.get("size_budget") else "about"
    yield f"Expected packed size: {about} {format_bytes(expected)}, {format_bytes(dense_bytes(module))} dense."
    if cli.config.after:
        yield f"after={cli.config.after} was not run: channels that it removes are still counted here."
    yield from _missing_extras(cli)


def expected_bytes(cli: DoctorCLI, module: Any) -> int:
    """Return a rough size of the packed file: the budget, or entropy of the mask and bits of each remaining weight."""
    budget = cli.config_init.get("size_budget")
    if budget is not None:
        return parse_size(budget.size)
    pruning, clustering = (cli.config_init.get(key) for key in ("pruning", "clustering"))
    sparsity = getattr(pruning, "sparsity", 0.0)
    share = sparsity if isinstance(sparsity, float) else 0.0
    clusters = getattr(clustering, "num_clusters", 0)
    bits = {ref.name: float(ref.quantizer.spec.bits) for ref in quantizers_of(module) if ref.quantizer.is_weight}
    targets = Targets().all_stored(module)
    num_bytes = float(dense_bytes(module))
    for target in targets:
        width = bits.get(target.name, 32.0)
        width = min(width, math.log2(clusters)) if isinstance(clusters, int) and clusters > 1 else width
        entropy = -sum(p * math.log2(p) for p in (share, 1 - share) if p > 0)
        num_bytes += target.parameter.numel() * ((1 - share) * width + entropy - 32) / 8
    return max(int(num_bytes), 0)


def _missing_extras(cli: DoctorCLI) -> Iterator[str]:
    needed = ["matplotlib", *(["onnx", "onnxruntime", "onnxscript"] if cli.config_init.get("quantization") else [])]
    try:
        require(*needed)
    except ImportError as error:
        yield str(error)
    if cli.config_init.get("quantization"):
        for name, packages in _RUNTIMES.items():
            try:
                require(*packages, extra=name)
            except ImportError as error:
                yield f"For export --formats={name}, {error}"
    if not any(cli.config_init.get(key) for key in TECHNIQUES) and not isinstance(cli.model, lc.DistillationModule):
        yield "The recipe has no technique: it trains a dense model."
