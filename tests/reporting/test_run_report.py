"""The report as data: complete, documented, and read back as it was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from lightning_compress.reporting import run_report
from lightning_compress.reporting.report_records import ModelResult
from lightning_compress.reporting.run_report import RunReport, read_report

CLASSES = [value for value in vars(run_report).values() if dataclasses.is_dataclass(value)]


def test_a_report_is_read_back_as_it_was_written(report: RunReport, tmp_path: Path) -> None:
    assert report.write(tmp_path) == tmp_path / "report.json"
    for given in (tmp_path, tmp_path / "report.json"):
        assert read_report(given) == (tmp_path, report)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_every_key_of_the_schema_is_documented(cls: type) -> None:
    for field in dataclasses.fields(cls):
        assert f"\n        {field.name}: " in str(cls.__doc__), field.name


def test_the_json_has_every_attribute(report: RunReport) -> None:
    data = json.loads(report.to_json())
    assert set(data) == {field.name for field in dataclasses.fields(RunReport)}
    assert data["models"][3]["num_bytes"] == 61_234
    assert data["models"][1]["intervals"] == {"test/acc": [0.951, 0.989]}


def test_the_result_is_the_last_model_with_metrics(report: RunReport) -> None:
    assert report.result is report.models[-1]
    assert report.baseline is report.models[1]
    without = dataclasses.replace(report, models=report.models[:3])
    assert without.result is report.models[2]
    assert dataclasses.replace(report, models=()).result is None


def test_totals_are_sums_over_the_layers(report: RunReport) -> None:
    assert report.weights.num_weights == sum(512 + 64 * index for index in range(5))
    assert report.weights.num_zeros == 5 * 400 + 10


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not JSON"),
        ("[]", "schema_version is None"),
        ('{"schema_version": 99}', "schema_version is 99, not 1"),
        ('{"schema_version": 1}', "not a complete report"),
        ('{"schema_version": 1, "name": "a", "command": "", "created": "", "models": 3}', "not a complete report"),
    ],
)
def test_what_is_no_report_is_named(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(ValueError, match=words) as error:
        read_report(tmp_path)
    assert str(tmp_path / "report.json") in str(error.value)


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"report\.json cannot be read \(No such file.*give the directory"):
        read_report(tmp_path)


def test_a_model_needs_no_measurement() -> None:
    model = ModelResult("fitted", "fitted", {})
    report = RunReport(name="a", command="", created="", models=(model,))
    assert RunReport.from_json(report.to_json()) == report
