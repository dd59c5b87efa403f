"""The main job: fit, test, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

import lightning_compress as lc
from lightning_compress.cli.comparison import Comparison
from lightning_compress.cli.errors import fail
from lightning_compress.cli.recipes import find, title
from lightning_compress.cli.run_directory import write_new
from lightning_compress.cli.runs import Baseline, RunCLI


def run(arguments: Sequence[str]) -> None:
    """Fits and tests a recipe, tests the same without techniques, and prints and writes a report.

    The compressed run comes first, so that a mistake in its configuration does not wait for a whole baseline; it is
    bit by bit what ``fit`` makes of the recipe.

    Args:
        arguments: The recipe, then overrides as ``--key=value``.
    """
    if not arguments or arguments[0].startswith("-"):
        if arguments and arguments[0] in ("-h", "--help"):
            RunCLI(args=["--help"], run=False)
        fail("run needs a recipe: lightning-compress run RECIPE [--key=value ...]; 'recipes' lists what there is.")
    recipe = find(arguments[0])
    cli = RunCLI(args=[f"--config={recipe}", *arguments[1:]], run=False, run_name=title(recipe))
    compressed = cli.fit_and_test()
    smaller = cli.shrink()
    report = lc.report(cli.model)
    packed = cli.pack()
    files = cli.export()
    baseline = Baseline(cli).metrics() if cli.config.baseline != "skip" else {}
    if cli.trainer.is_global_zero:
        distilled = isinstance(cli.model, lc.DistillationModule)
        alone, made = ("alone", "distilled") if distilled else ("dense", "compressed")
        columns = {"teacher": cli.teacher, alone: baseline, **cli.earlier, made: compressed, "smaller": smaller}
        _conclude(cli.directory, report, Comparison(columns, made, alone, files), packed)


def _conclude(directory: Path, report: lc.Report, comparison: Comparison, packed: lc.PackedFile | None) -> None:
    """Prints the tables and writes them into the run's directory."""
    console = Console(record=True)
    console.print(report)
    if packed is not None:
        console.print(packed)
    console.print(comparison)
    console.print(f"Everything of this run is in {directory}.", soft_wrap=True)
    write_new(directory / "report.txt", console.export_text())
    write_new(directory / "report.json", report.to_json())
