"""The command ``run``: fit, test, compress, export and report."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning.pytorch.loggers import WandbLogger
from rich.console import Console

from lightning_compress.cli.attempts import Attempts
from lightning_compress.cli.errors import fail
from lightning_compress.cli.finished_run import NETWORK_FILE, REMOVAL_FILE
from lightning_compress.cli.recipes import find, run_name_of
from lightning_compress.cli.routine_messages import hide_routine_messages
from lightning_compress.cli.run_directory import newest_checkpoint
from lightning_compress.cli.run_results import StageResults, report_of
from lightning_compress.cli.runs import BaselineRun, RunCLI
from lightning_compress.cli.stage_cli import Metrics
from lightning_compress.cli.wandb_runs import log_artifacts
from lightning_compress.reporting.report_files import write_report
from lightning_compress.reporting.report_metrics import report_metrics
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.run_summary import RunSummary, headline

INTERRUPTED = 130
"""Exit code after Ctrl-C, as of a shell."""


def run(arguments: Sequence[str]) -> None:
    """Run a recipe and its baseline, then print and write a report.

    The compressed run comes first, so that an error in its configuration is reported before the baseline is trained;
    its weights are bit-identical to those of the command ``fit``.

    Args:
        arguments: Recipe, followed by overrides as ``--key=value``.

    Raises:
        SystemExit: With code 1 if a step after the training failed, once the report is written.
    """
    hide_routine_messages()
    recipe = find(arguments[0])
    try:
        cli = RunCLI(args=[f"--config={recipe}", *arguments[1:]], run=False, run_name=run_name_of(recipe))
    except (KeyboardInterrupt, SystemExit) as error:
        if _is_interrupt(error):
            again = shlex.join(["lightning-compress", "run", *arguments])
            fail(f"Interrupted in an earlier stage. Finished stages are kept; go on with: {again}", code=INTERRUPTED)
        raise
    fitted = _fit_and_test(cli, arguments)
    results = _compress(cli, fitted)
    failures = list(results.failures)
    if cli.trainer.is_global_zero:
        report = report_of(cli, results)
        failures = list(report.failures)
        paths = write_report(report, cli.directory)
        _print(cli, report, paths)
        attempts = Attempts()
        attempts.run("The log of the report", lambda: _log(cli, report, paths), default=None)
        for failure in attempts.failures:
            print(failure, file=sys.stderr)
    cli.note_end()
    cli.close()
    if failures:
        sys.exit(1)


def _fit_and_test(cli: RunCLI, arguments: Sequence[str]) -> Metrics:
    try:
        return cli.fit_and_test()
    except (KeyboardInterrupt, SystemExit) as error:
        if _is_interrupt(error):
            fail(f"Interrupted. {_how_to_go_on(cli, arguments)}", code=INTERRUPTED)
        raise


def _is_interrupt(error: BaseException) -> bool:
    """Return True for Ctrl-C, after which Lightning exits."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def _how_to_go_on(cli: RunCLI, arguments: Sequence[str]) -> str:
    """Return a sentence with the command that continues an interrupted run."""
    checkpoint = newest_checkpoint(cli.directory)
    added = [f"--ckpt_path={checkpoint}"] if checkpoint else []
    if cli.previous_metrics:
        added.append(f"--after={cli.directory / 'before'}")
    if "teacher" in cli.inputs_of_run:
        added.append(f"--model.teacher={cli.inputs_of_run['teacher']}")
    start = "Go on with" if checkpoint else "No checkpoint was written yet; start again with"
    return f"{start}: {shlex.join(['lightning-compress', 'run', *arguments, *added])}"


def _compress(cli: RunCLI, fitted: Metrics) -> StageResults:
    """Return the data of all stages after the training; a stage that fails does not lose the others."""
    attempts = Attempts()
    masked = None
    if cli.removes_channels:
        masked = attempts.run("The copy of the masked network", cli.deployed, default=None)
    nothing: Metrics = {}
    removed = attempts.run("The removal of channels", cli.shrink, default=nothing)
    packed = attempts.run("The packed file", cli.pack, default=None)
    rounded = attempts.run("The test of the packed file", lambda: cli.test_rounded(packed), default=nothing)
    finalized = attempts.run("The deployed network", cli.deployed, default=None)
    exported = attempts.run("The export", cli.export, default=None)
    baseline = None
    if cli.config.baseline != "skip":
        baseline = attempts.run("The baseline", lambda: BaselineRun(cli).execute(), default=None)
    return StageResults(
        fitted=fitted,
        removed=removed,
        masked=masked if removed else None,
        finalized=finalized,
        packed=packed,
        rounded=rounded,
        exported=exported,
        baseline=baseline,
        teacher=cli.teacher_metrics,
        previous=cli.previous_metrics,
        failures=attempts.failures,
    )


def _log(cli: RunCLI, report: RunReport, paths: Mapping[str, Path]) -> None:
    """Log the numbers of the report to all loggers, and its files as artifacts to W&B."""
    metrics = report_metrics(report)
    for logger in cli.trainer.loggers:
        logger.log_metrics(metrics, step=cli.trainer.global_step)
        logger.save()
    outputs = {_KINDS.get(model.file, model.file): cli.directory / model.file for model in report.models if model.file}
    outputs |= {kind: path for kind, path in paths.items() if kind != "text"}
    if (cli.directory / REMOVAL_FILE).is_file():
        outputs["removal"] = cli.directory / REMOVAL_FILE
    metadata = {"headline": headline(report), **metrics}
    log_artifacts(cli.trainer, report.name, outputs, cli.inputs_of_run, metadata)


_KINDS = {NETWORK_FILE: "packed", "model.onnx": "onnx", "float.onnx": "onnx-fp32"}
"""Files of a run and the ends of the names of their artifacts."""


def _print(cli: RunCLI, report: RunReport, paths: Mapping[str, Path]) -> None:
    console = Console()
    console.print(RunSummary(report))
    for path in (paths["html"], cli.directory):
        console.print(str(path), soft_wrap=True, markup=False, highlight=False)
    console.print(_next_command(cli), soft_wrap=True, markup=False, highlight=False)


def _next_command(cli: RunCLI) -> str:
    commands = [f"lightning-compress compare {cli.directory.parent}/*"]
    if any(isinstance(logger, WandbLogger) for logger in cli.trainer.loggers):
        commands.append(f"wandb sync {cli.directory}/wandb/offline-*")
    return f"Next: {'   or: '.join(commands)}"
