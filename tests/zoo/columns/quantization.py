"""Columns of quantization: simulation against FP32, the same after training, and the file against the simulation."""

from __future__ import annotations

import functools
import tempfile
import warnings
from pathlib import Path

from torch import nn

import lightning_compress as lc
from lightning_compress.arguments import as_arguments
from lightning_compress.export.onnx.runtime import run, session
from tests.zoo.cells import Column
from tests.zoo.subject import Subject, floating, outputs_of, sqnr
from tests.zoo.task import fitted


def calibrated(subject: Subject) -> float:
    """SQNR of the calibrated simulation against FP32."""
    simulation = lc.calibrate(subject.network, [subject.inputs])
    return sqnr(outputs_of(subject.network, subject.inputs), outputs_of(simulation, subject.inputs))


@functools.cache
def train(subject: Subject) -> tuple[nn.Module, nn.Module]:
    """Return the finalized simulation after two steps of training, and the FP32 network with the same weights."""
    task = fitted(subject, lc.QuantizationAwareTraining())
    simulation = lc.finalize(task, module="network", example_inputs=subject.inputs)
    return simulation, lc.float_copy(task, module="network")


def trained(subject: Subject) -> float:
    """SQNR of the finalized simulation after training, against the FP32 network with the same weights."""
    simulation, plain = train(subject)
    return sqnr(outputs_of(plain, subject.inputs), outputs_of(simulation, subject.inputs))


def written(subject: Subject) -> float:
    """SQNR of the ONNX file under default session options, against the finalized simulation."""
    simulation, _ = train(subject)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file = lc.export_onnx(simulation, Path(folder) / "model.onnx", subject.inputs)
        actual = floating(run(session(file.path), as_arguments(subject.inputs)))
    return sqnr(outputs_of(simulation, subject.inputs), actual)


COLUMNS = (
    Column("simulation, dB", calibrated, least=20.0),
    Column("after training, dB", trained, least=20.0),
    Column("file, dB", written, least=20.0),
)
