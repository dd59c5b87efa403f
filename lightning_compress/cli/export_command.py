"""The command ``export``: write the network of a finished run in other formats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

import lightning_compress as lc
from lightning_compress.cli.attempts import Attempts
from lightning_compress.cli.errors import did_you_mean, exit_on_config_error, fail
from lightning_compress.cli.finished_run import NETWORK_FILE
from lightning_compress.cli.options import CommandParser
from lightning_compress.cli.reopened_run import ReopenedRun
from lightning_compress.cli.routine_messages import hide_routine_messages
from lightning_compress.cli.run_directory import make_unique
from lightning_compress.cli.stage_cli import Metrics
from lightning_compress.export.exported_file import ExportedFile
from lightning_compress.quantization.finalize import copy_for_deployment
from lightning_compress.quantization.insertion import is_quantized
from lightning_compress.reporting.run_report import read_report
from lightning_compress.reporting.units import format_bytes, format_metric, format_seconds


@dataclass(frozen=True)
class WrittenFile:
    """A file that the command has written.

    Attributes:
        path: The file.
        num_bytes: Its size.
        latency: Median latency in seconds, or ``None`` for a file that is not executed.
        metrics: Test metrics of the file, where its runtime was tested.
        unquantized_ops: Calls that compute in FP32 although the model is quantized.
    """

    path: Path
    num_bytes: int
    latency: float | None
    metrics: Metrics
    unquantized_ops: tuple[str, ...] = ()


def export(arguments: Sequence[str]) -> None:
    """Export the network of a run: ``export RUN [--formats=packed,onnx,half,openvino,...] [--out=DIR]``.

    The ONNX file is for the backend that the run was quantized for; ``half`` is the network in FP16. A run without
    quantization is written in FP32, with its channels removed.

    Args:
        arguments: Directory of a finished run or one of its checkpoints, and options.

    Raises:
        SystemExit: With code 1 if one of the formats failed; the others are written.
    """
    parser = CommandParser("export", "Write the network of a finished run in other formats.")
    parser.add_argument("run", metavar="RUN", help="directory of a finished run, or a checkpoint in it")
    parser.add_argument("--formats", metavar="LIST", default="packed,onnx", help=f"of {', '.join(FORMATS)}")
    parser.add_argument("--out", metavar="DIR", help="directory to write to, by default a new one in RUN/export")
    given = parser.parse(arguments)
    formats = given.formats.split(",")
    for name in formats:
        if name not in FORMATS:
            fail(f"--formats={name}{did_you_mean(name, FORMATS)}: choose from {', '.join(FORMATS)}.")
    path = Path(given.run)
    directory = path.parent.parent if path.suffix == ".ckpt" else path
    attempts = Attempts()
    hide_routine_messages()
    with exit_on_config_error(lambda: False):
        directory, report = read_report(directory)
        out = Path(given.out) if given.out else make_unique(directory / "export")
        run = ReopenedRun(directory, report, checkpoint=path if path.suffix == ".ckpt" else None, out=out)
        out.mkdir(parents=True, exist_ok=True)
        run.restore()
        if not run.inputs and formats != ["packed"]:
            raise ValueError(
                "test_step does not call the deployed module, so its inputs are unknown: export in Python."
            )
    written: list[WrittenFile] = []
    for name in formats:
        attempts.run(f"The export to {name}", partial(_append, written, FORMATS[name], run), default=None)
    _print(written, attempts.failures)
    if attempts.failures:
        raise SystemExit(1)


def _append(written: list[WrittenFile], write: Callable[[ReopenedRun], WrittenFile], run: ReopenedRun) -> None:
    written.append(write(run))


def _packed(run: ReopenedRun) -> WrittenFile:
    file = lc.save_packed(run.deployed(), run.out / NETWORK_FILE, half=run.half)
    return WrittenFile(file.path, file.num_bytes, None, {})


def _onnx(run: ReopenedRun) -> WrittenFile:
    # Not the finalized model: rounded weights would lose more when they are rounded again to the scales of the file.
    network = _network(run)
    file = lc.export_onnx(network, run.out / "model.onnx", run.inputs[0], backend=run.backend)
    ops = file.unquantized_ops if is_quantized(network) else ()
    return WrittenFile(file.path, file.num_bytes, file.latency, run.test_onnx(file.path), ops)


def _half(run: ReopenedRun) -> WrittenFile:
    network = lc.float_copy(run.model, module=run.deployed_module).cpu()
    file = lc.export_onnx(network, run.out / "half.onnx", run.inputs[0], half=True)
    return WrittenFile(file.path, file.num_bytes, file.latency, run.test_onnx(file.path))


def _openvino(run: ReopenedRun) -> WrittenFile:
    return _untested(lc.export_openvino, "openvino.onnx", run)


def _coreml(run: ReopenedRun) -> WrittenFile:
    return _untested(lc.export_coreml, "model.mlpackage", run)


def _litert(run: ReopenedRun) -> WrittenFile:
    return _untested(lc.export_litert, "model.tflite", run)


def _executorch(run: ReopenedRun) -> WrittenFile:
    return _untested(lc.export_executorch, "model.pte", run)


def _program(run: ReopenedRun) -> WrittenFile:
    return _untested(lc.export_program, "model.pt2", run)


def _untested(export: Callable[..., ExportedFile], name: str, run: ReopenedRun) -> WrittenFile:
    file = export(_network(run), run.out / name, run.inputs[0])
    return WrittenFile(file.path, file.num_bytes, file.latency, {}, file.unquantized_ops)


def _network(run: ReopenedRun) -> nn.Module:
    return copy_for_deployment(run.model, run.deployed_module, "export").cpu()


FORMATS: dict[str, Callable[[ReopenedRun], WrittenFile]] = {
    "packed": _packed,
    "onnx": _onnx,
    "half": _half,
    "openvino": _openvino,
    "coreml": _coreml,
    "litert": _litert,
    "executorch": _executorch,
    "program": _program,
}


def _print(files: Sequence[WrittenFile], failures: Sequence[str]) -> None:
    table = Table()
    table.add_column("file", overflow="fold")
    for column in ("bytes", "latency", "accuracy"):
        table.add_column(column, justify="right")
    for file in files:
        name = next((n for n in sorted(file.metrics) if "acc" in n), next(iter(file.metrics), ""))
        metric = format_metric(name, file.metrics[name]) if name else "not tested"
        table.add_row(str(file.path.name), format_bytes(file.num_bytes), format_seconds(file.latency), metric)
    console = Console()
    console.print(table)
    for file in files:
        if file.unquantized_ops:
            print(f"{file.path.name}: unquantized ops (FP32) are {', '.join(file.unquantized_ops)}.")
    for failure in failures:
        print(failure)
    if files:
        console.print(str(files[0].path.parent), soft_wrap=True, markup=False, highlight=False)
