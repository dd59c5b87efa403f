"""The end of a run: a headline, and a table that fits a terminal."""

from __future__ import annotations

import dataclasses

from rich.console import Console

from lightning_compress.reporting.report_records import ModelResult
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.run_summary import RunSummary, headline, main_metric
from tests.reporting.conftest import timing


def printed(report: RunReport, width: int = 80) -> list[str]:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(RunSummary(report))
    return capture.get().splitlines()


def test_the_headline_has_size_accuracy_and_latency(report: RunReport) -> None:
    assert headline(report) == (
        "1.84 MB -> 61.2 kB (30.0x, model.packed), accuracy 98.30 -> 97.50 (-0.80), "
        "1.59 ms -> 0.92 ms (1.7x, ONNX Runtime, 1 thread)"
    )
    assert printed(report, 200)[0] == headline(report)


def test_the_headline_says_only_what_was_measured(report: RunReport) -> None:
    fitted = dataclasses.replace(report, models=(report.models[2],))
    assert headline(fitted) == "accuracy 97.51"
    assert headline(dataclasses.replace(report, models=())) == "The run measured nothing."


def test_latencies_of_two_runtimes_are_not_compared(report: RunReport) -> None:
    models = (dataclasses.replace(report.models[1], timing=timing(9.0, "PyTorch")), report.models[-1])
    assert "ms" not in headline(dataclasses.replace(report, models=models))


def test_a_metric_that_is_no_accuracy_is_not_in_percent(report: RunReport) -> None:
    models = [
        ModelResult(role, role, {"test/loss": 0.5, "test/iou": 0.5 + i})
        for i, role in enumerate(("baseline", "fitted"))
    ]
    assert main_metric(models) == "test/iou"
    assert headline(dataclasses.replace(report, models=tuple(models))) == "test/iou 0.5 -> 1.5 (+1)"


def test_the_table_has_at_most_twenty_lines(report: RunReport) -> None:
    many = dataclasses.replace(report, models=report.models[:4] * 10)
    table = [line for line in printed(many) if line[0] in "┏┃┡│└├"]
    assert len(table) <= 20
    assert "26 more in report.html" in "".join(table)


def test_a_row_is_a_line_of_80_columns(report: RunReport) -> None:
    lines = printed(report)
    rows = [line for line in lines if line.startswith("│")]
    assert len(rows) == len(report.models)
    assert "98.30 [95.1, 98.9]" in rows[1]
    assert max(map(len, lines)) <= 80


def test_brackets_in_sentences_are_kept(report: RunReport) -> None:
    told = dataclasses.replace(
        report, notes=("pip install lightning-compress[export]",), failures=("The [red] failed.",)
    )
    text = "\n".join(printed(told))
    assert "lightning-compress[export]" in text
    assert "The [red] failed." in text
