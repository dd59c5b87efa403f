"""The command ``verify``: recompute from the files of a run what its report says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_compress.cli.errors import fail
from lightning_compress.cli.options import CommandParser
from lightning_compress.reporting.report_records import ModelResult
from lightning_compress.reporting.run_report import RunReport, read_report
from lightning_compress.reporting.run_summary import headline

PACKED_SUFFIX = ".packed"


def verify(arguments: Sequence[str]) -> None:
    """Verify the report of a run: ``verify RUN``, or one of its files: ``verify FILE``.

    Bytes and SHA-256 of each file are recomputed, and zeros, distinct values and shapes of each layer from the packed
    file. With ``--test`` the exported files are tested again.

    Args:
        arguments: Directory of a run, its ``report.json``, or one of its files; and options.

    Raises:
        SystemExit: With code 1 if anything differs.
    """
    parser = CommandParser("verify", "Recompute from the files of a run what its report says of them.")
    parser.add_argument("file", metavar="FILE", help="directory of a run, its report.json, or one of its files")
    parser.add_argument("--test", action="store_true", help="also test the exported ONNX file again")
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
    num_layers = 0
    for model in models:
        if model.file.endswith(PACKED_SUFFIX) and not problems:
            problems += _check_layers(directory / model.file, report)
            num_layers = len(report.layers)
    num_metrics = 0
    if given.test and not problems:
        tested = _check_metrics(directory, report)
        problems += [problem for problem in tested if problem]
        num_metrics = len(tested)
    for problem in problems:
        print(problem)
    if problems:
        fail(f"{len(problems)} of the report's statements differ from the files.", code=1)
    checked = f"{len(models)} files (bytes, SHA-256), {num_layers} layers (shape, zeros, values), {num_metrics} metrics"
    print(f"{headline(report)}\nVerified: {checked}.")


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


def _check_metrics(directory: Path, report: RunReport) -> list[str]:
    """Test the exported files again and return one string per metric, empty where it is that of the report."""
    from lightning_compress.cli.reopened_run import ReopenedRun
    from lightning_compress.cli.routine_messages import hide_routine_messages

    hide_routine_messages()
    model = report.file("model.onnx")
    if model is None or not model.metrics:
        return []
    metrics = ReopenedRun(directory, report).test_onnx(directory / model.file)
    return [
        ""
        if abs(metrics[name] - value) < 1e-5
        else f"{model.file}: {name} is {metrics[name]}, not {value} as reported."
        for name, value in model.metrics.items()
    ]
