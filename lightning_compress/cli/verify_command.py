"""The command ``verify``: recompute from the files of a run what its report says of them."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_compress.cli.errors import exit_on_config_error, fail
from lightning_compress.cli.options import CommandParser
from lightning_compress.reporting.html_report import render_html
from lightning_compress.reporting.report_differences import differences, statements
from lightning_compress.reporting.report_files import HTML_FILE
from lightning_compress.reporting.report_records import ModelResult
from lightning_compress.reporting.run_report import RunReport, read_report
from lightning_compress.reporting.run_summary import headline
from lightning_compress.reporting.units import format_seconds

PACKED_SUFFIX = ".packed"


def verify(arguments: Sequence[str]) -> None:
    """Verify the report of a run: ``verify RUN``, or one of its files: ``verify FILE``.

    Bytes and SHA-256 of each file are recomputed, zeros, distinct values and shapes of each layer from the packed file,
    and the tables of the HTML report from ``report.json``. With ``--test`` the checkpoints of the run are loaded, and
    all models and exported files are tested, counted, packed and timed again.

    Args:
        arguments: Directory of a run, its ``report.json``, or one of its files; and options.

    Raises:
        SystemExit: With code 1 if anything differs.
    """
    parser = CommandParser("verify", "Recompute from the files of a run what its report says of them.")
    parser.add_argument("file", metavar="FILE", help="directory of a run, its report.json, or one of its files")
    parser.add_argument("--test", action="store_true", help="also load the checkpoints, and test and count all again")
    given = parser.parse(arguments)
    path = Path(given.file)
    try:
        is_report = path.is_dir() or path.suffix == ".json"
        directory, report = read_report(path if is_report else path.parent)
    except ValueError as error:
        fail(str(error))
    models = [model for model in report.models if model.file and (is_report or model.file == path.name)]
    if not models and not is_report:
        fail(f"{path} is in no line of {directory / 'report.json'}: it names no such file.")
    problems = [problem for model in models for problem in _check_file(directory / model.file, model)]
    checked = [f"{len(models)} files (bytes, SHA-256)"]
    for model in models:
        if model.file.endswith(PACKED_SUFFIX) and not problems:
            problems += _check_layers(directory / model.file, report)
            checked.append(f"{len(report.layers)} layers (shape, zeros, values)")
    if is_report and (directory / HTML_FILE).is_file():
        problems += _check_html(directory / HTML_FILE, report)
        checked.append(HTML_FILE)
    if given.test and not problems:
        with tempfile.TemporaryDirectory() as out:
            found = _recomputed(directory, report, Path(out))
        problems += differences(report, found)
        checked.append(f"{len(statements(report))} numbers computed again from checkpoints and files")
        _print_latencies(report, found)
    for problem in problems:
        print(problem)
    if problems:
        fail(f"{len(problems)} of the report's statements differ from the files.", code=1)
    print(f"{headline(report)}\nVerified: {', '.join(checked)}.")


def _check_file(path: Path, model: ModelResult) -> Iterator[str]:
    if not path.is_file():
        yield f"{path} is missing."
        return
    from lightning_compress.cli.measurements import sha256_of

    if path.stat().st_size != model.num_bytes:
        yield f"{path}: {path.stat().st_size:,} bytes, the report says {model.num_bytes:,}."
    if model.sha256 and sha256_of(path) != model.sha256:
        yield f"{path}: the SHA-256 is not that of the report; the file was changed."


def _check_layers(path: Path, report: RunReport) -> Iterator[str]:
    from lightning_compress.cli.measurements import layer_result
    from lightning_compress.packing.reader import load_packed

    tensors = load_packed(path)
    if report.sizes and report.sizes[-1].num_bytes != path.stat().st_size:
        yield f"{path}: {path.stat().st_size:,} bytes, the last stage of the report has {report.sizes[-1].num_bytes:,}."
    for layer in report.layers:
        if layer.name not in tensors:
            yield f"{path}: {layer.name} is missing."
            continue
        found = layer_result(layer.name, tensors[layer.name])
        for key in ("shape", "num_weights", "num_zeros", "num_values"):
            if getattr(found, key) != getattr(layer, key):
                yield f"{layer.name}: {key} is {getattr(found, key)}, the report says {getattr(layer, key)}."


def _check_html(path: Path, report: RunReport) -> Iterator[str]:
    """Compare the text of the HTML report with that of ``report.json``; pictures are drawn, not compared."""
    if _IMAGES.sub("", path.read_text()) != _IMAGES.sub("", render_html(report, {})):
        yield f"{path} says something else than report.json: write it again with lightning-compress report."


_IMAGES = re.compile(r"<img [^>]*>\n?|<h2>(Weights before and after|Schedules)</h2>\n?")
"""Pictures, and the headings of those that are without a table."""


def _recomputed(directory: Path, report: RunReport, out: Path) -> RunReport:
    from lightning_compress.cli.recomputed_report import recompute
    from lightning_compress.cli.routine_messages import hide_routine_messages

    hide_routine_messages()
    with exit_on_config_error(lambda: False):
        return recompute(directory, report, out)


def _print_latencies(report: RunReport, found: RunReport) -> None:
    """Print latencies beside those of the report: they depend on the machine and its load."""
    again = {model.title: model.timing for model in found.models if model.timing is not None}
    for model in report.models:
        if model.timing is not None and model.title in again:
            seconds = (format_seconds(timing.median) for timing in (model.timing, again[model.title]))
            print(f"{model.title}: latency {' in the report, '.join(seconds)} now.")
