"""A LightningModule that knows nothing of this package, and short fits of it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_compress.arguments import call_model
from tests.fits import make_trainer
from tests.zoo.subject import Subject, floating, samples_of


class Task(LightningModule):
    """Train a network on the mean square of all of its outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        losses = [output.square().mean() for output in floating(call_model(self.network, batch))]
        return torch.stack(losses).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def fitted(subject: Subject, *callbacks: Callback, steps: int = 2) -> Task:
    """Return a copy of the network after a few steps of training with callbacks, each step on the whole batch."""
    task = Task(copy.deepcopy(subject.network)).train()
    # Clipped, so that a step moves no network by more than 0.001 in norm, whatever the scale of its outputs.
    make_trainer(*callbacks, max_epochs=steps, gradient_clip_val=1.0).fit(task, batches(subject))
    return task


def batches(subject: Subject) -> DataLoader:
    """Return a loader of one batch."""
    samples = samples_of(subject.inputs)
    return DataLoader(samples, batch_size=len(samples))
