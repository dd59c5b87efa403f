"""The command ``compare``: Pareto set of several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from lightning_compress.atomic_files import atomic_write
from lightning_compress.cli.errors import fail
from lightning_compress.cli.options import CommandParser
from lightning_compress.cli.run_directory import make_unique
from lightning_compress.reporting.run_report import REPORT_FILE, read_report
from lightning_compress.reporting.tradeoff import compare_runs, draw_tradeoff

_FILE = "compare.json"


def compare(arguments: Sequence[str]) -> None:
    """Compare runs: ``compare RUN... [--metric=NAME] [--out=DIR]``.

    Args:
        arguments: Directories of finished runs, and options.
    """
    parser = CommandParser("compare", "Compare finished runs by accuracy, size and latency; dominated ones are marked.")
    parser.add_argument("runs", metavar="RUN", nargs="+", help="directory of a finished run")
    parser.add_argument("--metric", metavar="NAME", default="", help="test metric, by default the accuracy")
    parser.add_argument("--out", metavar="DIR", help="directory to write to, by default a new one in runs/compare")
    given = parser.parse(arguments)
    try:
        reports = [read_report(run) for run in given.runs if not _is_unfinished(given.runs, run)]
        if not reports:
            raise ValueError(f"None of the {len(given.runs)} directories is a finished run: none has a {REPORT_FILE}.")
        tradeoff = compare_runs([(str(directory), report) for directory, report in reports], given.metric)
        directory = Path(given.out) if given.out else make_unique(Path("runs/compare"))
        with atomic_write(directory / _FILE) as partial:
            partial.write_text(tradeoff.to_json())
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"{error.filename} cannot be written: {error.strerror}.")
    console = Console()
    console.print(tradeoff)
    try:
        with atomic_write(directory / "compare.png") as partial:
            partial.write_bytes(draw_tradeoff(tradeoff))
    except ImportError as error:
        console.print(str(error), markup=False)
    console.print(str(directory), soft_wrap=True, markup=False, highlight=False)


def _is_unfinished(runs: Sequence[str], run: str) -> bool:
    """Return True for a run without a report among several, as a shell's glob gives them; it is named and left out."""
    if len(runs) == 1 or not Path(run).is_dir() or (Path(run) / REPORT_FILE).is_file():
        return False
    if (Path(run) / _FILE).is_file():  # an earlier comparison
        return True
    print(f"{run} is left out: it has no {REPORT_FILE}.")
    return True
