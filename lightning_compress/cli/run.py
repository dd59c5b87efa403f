"""The command ``run``: fit, test, compress, export and report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import lightning_compress as lc
from lightning_compress.cli.comparison import Comparison
from lightning_compress.cli.errors import fail
from lightning_compress.cli.recipes import find, run_name_of
from lightning_compress.cli.run_directory import write_new
from lightning_compress.cli.runs import BaselineRun, RunCLI


def run(arguments: Sequence[str]) -> None:
    """Run a recipe and its baseline, then print and write a report.

    The compressed run comes first, so that an error in its configuration is reported before the baseline is trained;
    its weights are bit-identical to those of the command ``fit``.

    Args:
        arguments: Recipe, followed by overrides as ``--key=value``.
    """
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            RunCLI(args=["--help"], run=False)
        fail("run requires a recipe: lightning-compress run RECIPE [--key=value ...]; 'recipes' lists all recipes.")
    recipe = find(arguments[0])
    cli = RunCLI(args=[f"--config={recipe}", *arguments[1:]], run=False, run_name=run_name_of(recipe))
    fitted = cli.fit_and_test()
    shrunk = cli.shrink()
    report = lc.report(cli.model)
    packed = cli.pack()
    exported = cli.export()
    baseline = BaselineRun(cli).metrics() if cli.config.baseline != "skip" else {}
    if cli.trainer.is_global_zero:
        distilled = isinstance(cli.model, lc.DistillationModule)
        reference, result = ("no-KD baseline", "distilled") if distilled else ("dense", "compressed")
        columns = {
            "teacher": cli.teacher_metrics,
            reference: baseline,
            **cli.previous_metrics,
            result: fitted,
            "channels removed": shrunk,
        }
        _print_and_write(cli.directory, report, Comparison(columns, result, reference, exported), packed)


def _print_and_write(directory: Path, report: lc.Report, comparison: Comparison, packed: lc.PackedFile | None) -> None:
    console = Console(record=True)
    console.print(report)
    if packed is not None:
        console.print(packed)
    console.print(comparison)
    console.print(f"All files of this run are in {directory}.", soft_wrap=True)
    write_new(directory / "report.txt", console.export_text())
    write_new(directory / "report.json", report.to_json())
