"""Snapshot of the state of a fit that pruning rewinds to."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor


@dataclass
class Snapshot:
    """Learning-rate schedules at one moment of a fit, and optionally the weights.

    Attributes:
        weights: Trainable parameters and buffers by name, on the CPU; empty if only the learning rate is rewound.
        schedulers: State of each learning-rate scheduler.
        rates: Learning rates of the parameter groups of each optimizer.
    """

    weights: dict[str, Tensor]
    schedulers: list[dict[str, Any]]
    rates: list[list[float]]

    @classmethod
    def take(cls, trainer: Trainer, *, weights: bool) -> Snapshot:
        """Return a snapshot of the current state."""
        return cls(
            {name: tensor.detach().cpu().clone() for name, tensor in _tensors(trainer.lightning_module).items()}
            if weights
            else {},
            [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers],
        )

    @torch.no_grad()
    def restore_(self, trainer: Trainer) -> None:
        """Restore the state in place; with weights, the state of the optimizers is cleared."""
        tensors = _tensors(trainer.lightning_module)
        for name, value in self.weights.items():
            tensors[name].copy_(value)
        # A copy, since schedulers may keep and change the lists in their state.
        for config, state in zip(trainer.lr_scheduler_configs, self.schedulers, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))
        # Schedulers do not set the learning rate when they are restored, only when they step.
        for optimizer, rates in zip(trainer.optimizers, self.rates, strict=True):
            if self.weights:
                optimizer.state.clear()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Return the snapshot as plain values and tensors, for a checkpoint."""
        return {"weights": self.weights, "schedulers": self.schedulers, "rates": self.rates}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Snapshot:
        """Return the snapshot from the result of :meth:`state_dict`."""
        return cls(**state)


def _tensors(module: LightningModule) -> dict[str, Tensor]:
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {**trainable, **dict(module.named_buffers())}
