"""The command ``report``: print and write the report of a finished run again."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from lightning_compress.cli.errors import fail
from lightning_compress.cli.options import CommandParser
from lightning_compress.reporting.report_files import write_report
from lightning_compress.reporting.run_report import read_report
from lightning_compress.reporting.run_summary import RunSummary


def report(arguments: Sequence[str]) -> None:
    """Print the report of a run, and write its HTML, text and figures again: ``report RUN``.

    Args:
        arguments: Directory of a finished run, or its ``report.json``.
    """
    parser = CommandParser("report", "Print the report of a finished run, and write its HTML and figures again.")
    parser.add_argument("run", metavar="RUN", help="directory of a finished run, or its report.json")
    given = parser.parse(arguments)
    console = Console()
    try:
        directory, found = read_report(given.run)
        console.print(RunSummary(found))
        paths = write_report(found, directory)
    except ValueError as error:
        fail(str(error))
    except OSError as error:
        fail(f"The report cannot be written to {directory}: {error.strerror}.")
    console.print(str(paths["html"]), soft_wrap=True, markup=False, highlight=False)
