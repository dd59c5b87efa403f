"""The report of a run, put together from the data that its stages return."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.cli.attempts import Attempts
from lightning_compress.cli.compression import TECHNIQUES
from lightning_compress.cli.environment import command_line, environment
from lightning_compress.cli.measurements import (
    batch_size_of,
    dense_bytes,
    first_sample,
    intervals_of,
    layer_results,
    macs_per_sample,
    module_call,
    sha256_of,
    size_stages,
    time_calls,
    weight_histograms,
)
from lightning_compress.cli.onnx_evaluation import OnnxEvaluation
from lightning_compress.cli.stage_cli import Metrics, StageCLI
from lightning_compress.reporting.notes import notes_on
from lightning_compress.reporting.report_records import LayerResult, ModelResult, Timing, WeightHistogram
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.trainer.queries import callbacks_of


@dataclass(frozen=True)
class BaselineResult:
    """Result of the baseline run.

    Attributes:
        metrics: Test metrics.
        network: Its network, that of the deployed module of the run.
    """

    metrics: Metrics
    network: nn.Module | None

    @classmethod
    def of(cls, model: LightningModule, metrics: Metrics, deployed_module: str) -> BaselineResult:
        """Return the result of a model.

        Args:
            model: The trained or initial model, of a distillation the student.
            metrics: Its test metrics.
            deployed_module: Name of the module that the run deploys.
        """
        # A DistillationModule calls its network student.model, its student alone calls it model.
        name = deployed_module.removeprefix("student").lstrip(".")
        has_network = name in dict(model.named_modules())
        return cls(metrics, lc.finalize(model, module=name).cpu() if has_network else None)


@dataclass
class StageResults:
    """Data that the stages of a run have returned; those that failed or were left out keep their defaults.

    Attributes:
        fitted: Test metrics of the best checkpoint.
        removed: Test metrics without the masked channels; empty if none were removed.
        masked: Copy of the network with masked channels, for the comparison of latencies.
        finalized: Deployed network.
        packed: Packed file.
        rounded: Test metrics of the packed file; empty if it rounds nothing.
        exported: Exported files and their metrics.
        baseline: Result of the baseline run.
        teacher: Test metrics of the teacher.
        previous: Test metrics of earlier stages, by recipe.
        failures: Sentences on the stages that failed.
    """

    fitted: Metrics = field(default_factory=dict)
    removed: Metrics = field(default_factory=dict)
    masked: nn.Module | None = None
    finalized: nn.Module | None = None
    packed: lc.PackedFile | None = None
    rounded: Metrics = field(default_factory=dict)
    exported: OnnxEvaluation | None = None
    baseline: BaselineResult | None = None
    teacher: Mapping[str, float] = field(default_factory=dict)
    previous: Mapping[str, Metrics] = field(default_factory=dict)
    failures: Sequence[str] = ()


def report_of(cli: StageCLI, results: StageResults) -> RunReport:
    """Return the report of a run.

    Args:
        cli: Command line of the run, with its Trainer and model.
        results: Data of its stages.
    """
    names = tuple(name for key, name in TECHNIQUES.items() if key != "monitor" and cli.config_init.get(key) is not None)
    network = results.finalized
    dense = cli.initial_num_bytes or (dense_bytes(network) if network is not None else 0)
    before = results.baseline.network if results.baseline is not None else None
    quantization = next((c for c in callbacks_of(cli.trainer) if isinstance(c, lc.QuantizationAwareTraining)), None)
    exported = () if results.exported is None else results.exported.int8.unquantized_ops
    attempts = Attempts()
    layers: tuple[LayerResult, ...] = ()
    histograms: tuple[WeightHistogram, ...] = ()
    timings: dict[str, Timing] = {}
    if network is not None:
        layers = attempts.run("The count of weights", lambda: layer_results(network, results.packed), default=layers)
        old = _weights_before(cli, before)
        histograms = attempts.run("The histograms", lambda: weight_histograms(old, network), default=histograms)
    timings = attempts.run("The latency in PyTorch", lambda: _pytorch_timings(cli, results), default=timings)
    report = RunReport(
        name=cli.run_name or "run",
        command=command_line(),
        created=datetime.now().astimezone().isoformat(timespec="seconds"),
        models=_models(cli, results, timings),
        sizes=size_stages(results.packed, names, dense),
        layers=layers,
        histograms=histograms,
        schedules=cli.schedules(),
        unquantized_ops=exported or tuple(quantization.unquantized_ops if quantization is not None else ()),
        techniques=(*names, *(["DistillationModule"] if isinstance(cli.model, lc.DistillationModule) else [])),
        failures=(*results.failures, *attempts.failures),
        environment=environment(),
        seed=cli.seed,
        checkpoint=_relative(cli.tested_checkpoint, cli.directory),
        config=yaml.safe_load(cli.parser.dump(cli.config, skip_none=False)),
    )
    return replace(report, notes=notes_on(report))


def _models(cli: StageCLI, results: StageResults, timings: Mapping[str, Timing]) -> tuple[ModelResult, ...]:
    inputs = cli.inputs[0] if cli.inputs else None
    distilled = isinstance(cli.model, lc.DistillationModule)

    def model(role: str, title: str, metrics: Mapping[str, float], network: nn.Module | None = None) -> ModelResult:
        return ModelResult(
            role,
            title,
            dict(metrics),
            intervals=intervals_of(metrics, cli.num_test_samples),
            num_samples=cli.num_test_samples,
            num_parameters=None if network is None else sum(p.numel() for p in network.parameters()),
            macs=None if network is None or inputs is None else macs_per_sample(network, inputs),
            num_bytes=None if network is None else dense_bytes(network),
            timing=timings.get(role),
        )

    found = [model("teacher", "teacher", results.teacher)] if results.teacher else []
    found += [model("previous", title, metrics) for title, metrics in results.previous.items()]
    if results.baseline is not None:
        title = "no-KD baseline" if distilled else "dense baseline"
        found.append(model("baseline", title, results.baseline.metrics, results.baseline.network))
    last_network = results.finalized
    role = "channels removed" if results.removed else "fitted"
    found.append(
        model("fitted", "fitted, channels masked", results.fitted, results.masked)
        if results.removed
        else model("fitted", "distilled" if distilled else "fitted", results.fitted, last_network)
    )
    if results.removed:
        found.append(model(role, "channels removed", results.removed, last_network))
    if results.packed is not None:
        # Without rounding, the packed file is that of the tested network, bit by bit.
        tested = model("packed", "packed file", results.rounded or found[-1].metrics)
        packed = replace(tested, num_bytes=results.packed.num_bytes)
        packed = replace(packed, file=results.packed.path.name, sha256=sha256_of(results.packed.path))
        found.append(packed)
    return (*found, *_exported(cli, results.exported))


def _exported(cli: StageCLI, exported: OnnxEvaluation | None) -> list[ModelResult]:
    if exported is None:
        return []
    return [
        ModelResult(
            "export",
            title,
            metrics,
            intervals=intervals_of(metrics, cli.num_test_samples),
            num_samples=cli.num_test_samples if metrics else None,
            num_bytes=file.num_bytes,
            file=file.path.name,
            sha256=sha256_of(file.path),
            timing=exported.timings.get(file.path.name),
        )
        for title, file, metrics in (
            ("FP32 ONNX", exported.fp32, {}),
            ("INT8 ONNX", exported.int8, exported.metrics),
        )
    ]


def _pytorch_timings(cli: StageCLI, results: StageResults) -> dict[str, Timing]:
    """Measure the networks of one run in PyTorch, unless files were measured: fake quantization takes time itself."""
    after = "channels removed" if results.removed else "fitted"
    baseline = results.baseline.network if results.baseline is not None else None
    networks = {"baseline": baseline, "fitted": results.masked, after: results.finalized}
    if results.exported is not None or not cli.inputs or cli.config_init.get("quantization") is not None:
        return {}
    inputs = first_sample(cli.inputs[0])
    calls = {role: module_call(net.cpu().eval(), inputs) for role, net in networks.items() if net is not None}
    return time_calls(calls, batch_size=batch_size_of(inputs), runtime="PyTorch")


def _weights_before(cli: StageCLI, baseline: nn.Module | None) -> dict[str, Tensor]:
    """Return the weights of the dense baseline, else those at the start of the fit; only of unchanged shapes."""
    if baseline is None:
        return cli.initial_weights
    parameters = dict(baseline.named_parameters())
    found = {name: parameters[name].detach().cpu() for name in cli.initial_weights if name in parameters}
    return found or cli.initial_weights


def _relative(path: Any, directory: Path) -> str:
    if not path:
        return ""
    found = Path(path)
    return str(found.relative_to(directory)) if found.is_relative_to(directory) else str(found)
