"""Column of distillation: how much closer a student comes to its teacher."""

from __future__ import annotations

import copy

import torch
from torch import nn

import lightning_compress as lc
from tests.fits import make_trainer
from tests.zoo.cells import Column
from tests.zoo.subject import Subject
from tests.zoo.task import Task, batches

STEPS = 20


class Adam(Task):
    """The same task with an optimizer that makes progress in a few steps."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


def taught(subject: Subject) -> float:
    """Squared distance of the logits to those of the teacher: the first divided by the last, in dB.

    The student has the architecture of its teacher without the smallest half of the weights: a smaller sibling.
    """
    student = Adam(_without_small_weights(subject.network))
    module = lc.DistillationModule(student, subject.network, losses={"mse": lc.LogitMSE()}, task_weight=0.0)
    losses: list[float] = []
    for epochs in (1, STEPS):
        trainer = make_trainer(max_epochs=epochs)
        trainer.fit(module, batches(subject))
        losses.append(float(trainer.callback_metrics["train/mse"]))
    return float(10 * torch.log10(torch.tensor(losses[0] / losses[1])))


def _without_small_weights(network: nn.Module) -> nn.Module:
    student = copy.deepcopy(network).train()
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():
                parameter.mul_(parameter.abs() > parameter.abs().median())
    return student


COLUMNS = (Column("closer to the teacher, dB", taught, least=0.5),)
