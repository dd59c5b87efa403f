"""The report of a finished run, computed again from its configuration, checkpoints and files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import yaml
from lightning.pytorch import Callback

import lightning_compress as lc
from lightning_compress.cli.finished_run import PREVIOUS_RUN
from lightning_compress.cli.measurements import intervals_of, sha256_of
from lightning_compress.cli.onnx_evaluation import time_files
from lightning_compress.cli.reopened_run import ReopenedRun
from lightning_compress.cli.run_directory import best_checkpoint
from lightning_compress.cli.run_results import BaselineResult, StageResults, report_of
from lightning_compress.cli.runs import TEACHER_FILE, TEACHER_RUN
from lightning_compress.cli.sensitivity_command import SensitivityCLI
from lightning_compress.cli.stage_cli import Metrics
from lightning_compress.reporting.report_records import ModelResult, SensitivityMap
from lightning_compress.reporting.run_report import RunReport


def recompute(directory: Path, report: RunReport, out: Path) -> RunReport:
    """Return the report of a run with all that can be computed from its files; schedules are not among it.

    Networks are loaded from the checkpoints that were tested, the run's own, its baseline's, its teacher's and those
    of earlier stages; they are tested, counted and packed again. Exported files are tested as they are.

    Args:
        directory: Directory of the run.
        report: Its report, which says what there was.
        out: Empty directory to write to.

    Raises:
        ValueError: If a checkpoint or a configuration is missing.
    """
    run = ReopenedRun(directory, report, out=out)
    fitted = run.restore_fitted()
    masked = run.deployed() if any(model.role == "channels removed" for model in report.models) else None
    removed = run.remove_channels()
    packed = run.pack()
    results = StageResults(
        fitted=fitted,
        removed=removed,
        masked=masked if removed else None,
        finalized=run.deployed(),
        packed=packed,
        rounded=run.test_rounded(packed),
        baseline=_baseline(run) if report.baseline is not None else None,
        teacher=_teacher(run) if any(model.role == "teacher" for model in report.models) else {},
        previous=dict(_previous(run)),
    )
    found = report_of(run, results)
    exported = [model for model in report.models if model.role == "export"]
    models = (*found.models, *(_exported(run, model) for model in exported))
    if exported:
        timings = time_files([directory / model.file for model in exported], run.inputs[0])
        models = tuple(replace(model, timing=timings.get(model.file, model.timing)) for model in models)
    sensitivities = tuple(_sensitivity(each, out) for each in report.sensitivities if each.config)
    return replace(found, models=models, sensitivities=sensitivities)


class _ReopenedBaseline(ReopenedRun):
    """The baseline of a run, with the weights after its training."""

    def compression_callbacks(self) -> list[Callback]:
        """Return the run record only."""
        return [self.record]

    def instantiate_classes(self) -> None:
        """Instantiate all objects, with the student of a distillation as model."""
        super().instantiate_classes()
        if isinstance(self.model, lc.DistillationModule):
            self.model = self.model.student


class _InitialBaseline(_ReopenedBaseline):
    """The baseline of a run that has tested the initial model."""

    has_checkpoint = False


def _baseline(run: ReopenedRun) -> BaselineResult:
    directory = run.finished / "baseline"
    reopened = _InitialBaseline if run.report.config.get("baseline") == "test" else _ReopenedBaseline
    baseline = reopened(directory, run.report, checkpoint=best_checkpoint(directory), out=run.out)
    metrics = baseline.restore_fitted()
    return BaselineResult.of(baseline.model, metrics, run.deployed_module)


def _teacher(run: ReopenedRun) -> Metrics:
    directory = run.finished / TEACHER_RUN
    return ReopenedRun(directory, run.report, checkpoint=directory / TEACHER_FILE, out=run.out).restore()


def _previous(run: ReopenedRun) -> Iterator[tuple[str, Metrics]]:
    """Yield the metrics of earlier stages by the titles that the report gives them, the first stage first."""
    titles = [model.title for model in run.report.models if model.role == "previous"]
    for i, title in enumerate(titles):
        directory = run.finished.joinpath(*[PREVIOUS_RUN] * (len(titles) - i))
        stage = ReopenedRun(directory, run.report, checkpoint=best_checkpoint(directory), out=run.out)
        yield title, stage.restore()


def _exported(run: ReopenedRun, model: ModelResult) -> ModelResult:
    """Return the measurements of an exported file, which is tested if the report says that it was."""
    path = run.finished / model.file
    metrics = run.test_onnx(path) if model.metrics else {}
    return replace(
        model,
        metrics=metrics,
        intervals=intervals_of(metrics, run.num_test_samples),
        num_samples=run.num_test_samples if metrics else None,
        num_bytes=path.stat().st_size,
        sha256=sha256_of(path),
    )


def _sensitivity(reported: SensitivityMap, out: Path) -> SensitivityMap:
    """Return the sensitivity, measured again in the same configuration."""
    path = out / "sensitivity.yaml"
    path.write_text(yaml.safe_dump(reported.config))
    cli = SensitivityCLI(args=[f"--config={path}", "--report=null", f"--out={out}"], run=False)
    with cli.exit_on_config_error():
        found = cli.maps(cli.measure())
    return next(each for each in found if each.technique == reported.technique)
