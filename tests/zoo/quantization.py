"""Columns of quantization: simulation against FP32, the same after training, and the file against the simulation."""

from __future__ import annotations

import copy
import functools
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.arguments import as_arguments, call_model
from lightning_compress.export.onnx.runtime import run, session
from tests.fits import make_trainer
from tests.zoo.cells import Column
from tests.zoo.subject import Subject, floating, outputs_of, samples_of, sqnr


class Task(LightningModule):
    """A LightningModule that knows nothing of this package, with the mean square of all outputs as its loss."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = [output.square().mean() for output in floating(call_model(self.network, batch))]
        return torch.stack(losses).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-4)


def calibrated(subject: Subject) -> float:
    """SQNR of the calibrated simulation against FP32."""
    simulation = lc.calibrate(subject.network, [subject.inputs])
    return sqnr(outputs_of(subject.network, subject.inputs), outputs_of(simulation, subject.inputs))


@functools.cache
def train(subject: Subject) -> tuple[nn.Module, nn.Module]:
    """Return the finalized simulation after two steps of training, and the FP32 network with the same weights."""
    task = Task(copy.deepcopy(subject.network)).train()
    samples = samples_of(subject.inputs)
    trainer = make_trainer(lc.QuantizationAwareTraining(), max_epochs=2)
    trainer.fit(task, DataLoader(samples, batch_size=len(samples)))
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
