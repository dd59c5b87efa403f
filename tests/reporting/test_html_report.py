"""The HTML report: self-contained, its numbers those of the JSON, and shown by a real browser."""

from __future__ import annotations

import html
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from lightning_compress.reporting.html_report import render_html
from lightning_compress.reporting.report_files import write_report
from lightning_compress.reporting.report_records import LayerSensitivity, SensitivityMap
from lightning_compress.reporting.run_figures import draw_run, file_name
from lightning_compress.reporting.run_report import RunReport
from lightning_compress.reporting.run_summary import headline
from tests.reporting.browser import MISSING

TITLES = ["Size by stage", "Sparsity and bits by layer", "Weights before and after", "Schedules"]
# Appended to the page by the test: the widths of its images as the browser has decoded them.
PROBE = "<script>document.title = [...document.images].map(i => i.naturalWidth).join()</script>"


def cells(text: str) -> list[str]:
    return [html.unescape(cell) for cell in re.findall(r"<td>(.*?)</td>", text)]


def numbers(value: object) -> list[float]:
    """All numbers of a JSON value."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


def test_every_number_in_the_tables_is_in_the_json(report: RunReport) -> None:
    text = render_html(report, {}).partition("<h2>Environment")[0]
    data = json.loads(report.to_json())
    known = [*numbers(data), report.weights.num_weights, report.weights.num_zeros, report.weights.sparsity]
    known += [layer.sparsity for layer in report.layers]
    shown = [cell for cell in cells(text) if re.search(r"\d", cell) and not re.search(r"[a-z]", cell)]
    assert len(shown) > 50
    for cell in shown:
        for part in re.findall(r"[\d,]+(?:\.\d+)?", cell.replace("FP32", "").replace("INT8", "")):
            value, half_digit = float(part.replace(",", "")), 0.51 * 10.0 ** -len(part.partition(".")[2])
            # Accuracies and sparsities are in percent, latencies in milliseconds.
            assert any(abs(value - n * unit) <= half_digit for n in known for unit in (1, 100, 1000)), (part, cell)


@pytest.fixture
def sensitive(report: RunReport) -> RunReport:
    layers = tuple(LayerSensitivity(f"features.{i}", {"50 %": 0.01 * i - 0.01, "90 %": 10.0**i}) for i in range(3))
    return replace(report, sensitivities=(SensitivityMap("pruning", 0.345, layers),))


def test_a_sensitivity_is_a_table_and_a_heat_map(sensitive: RunReport) -> None:
    figures = draw_run(sensitive)
    text = render_html(sensitive, figures)
    assert 'alt="Sensitivity to pruning"' in text
    shown = cells(text)
    start = shown.index("features.0")
    assert shown[start : start + 6] == ["features.0", "-0.01", "+1", "features.1", "+0", "+10"]
    assert RunReport.from_json(sensitive.to_json()) == sensitive
    without = render_html(replace(sensitive, sensitivities=()), {})
    assert "Sensitivity" not in without


def test_markup_in_names_is_text(report: RunReport) -> None:
    assert "model.&lt;softmax&gt;" in render_html(report, {})


def test_nothing_is_linked(report: RunReport) -> None:
    text = render_html(report, draw_run(report))
    assert text.count('src="data:image/png;base64,') == 4
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "http" not in text.replace("data:image", "")


def test_all_files_are_written(report: RunReport, tmp_path: Path) -> None:
    paths = write_report(report, tmp_path)
    assert {path.name for path in paths.values()} == {"report.json", "report.html", "report.txt", "figures"}
    figures = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert figures == sorted(map(file_name, TITLES))
    assert all((tmp_path / "figures" / name).read_bytes().startswith(b"\x89PNG") for name in figures)
    text = (tmp_path / "report.txt").read_text()
    assert "features.4.weight" in text
    # Written again in place, as the command report does.
    write_report(report, tmp_path)
    assert len(list(tmp_path.iterdir())) == 4


def test_a_browser_shows_it(sensitive: RunReport, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(render_html(sensitive, draw_run(sensitive)).replace("</body>", f"{PROBE}</body>"))
    command = [sys.executable, "-m", "tests.reporting.browser", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=Path(__file__).parents[2])
    if done.returncode == MISSING:
        pytest.skip(f"there is no browser: {done.stderr}")
    shown = done.stdout
    assert headline(sensitive) in html.unescape(shown), done.stderr
    widths = re.search(r"<title>(.*?)</title>", shown)
    assert widths is not None
    assert len(widths[1].split(",")) == 5
    assert all(int(width) > 500 for width in widths[1].split(","))
    assert cells(shown) == cells(render_html(sensitive, {}))
