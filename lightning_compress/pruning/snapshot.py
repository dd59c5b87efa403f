"""The state of a fit to which pruning rewinds."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor


@dataclass
class Snapshot:
    """Weights (or none) and learning-rate schedules as they were at one moment.

    Attributes:
        weights: Trainable parameters and buffers by name, on the CPU; empty if only the learning rate returns.
        schedulers: State of each learning-rate scheduler.
        rates: Learning rates of each optimizer's groups.
    """

    weights: dict[str, Tensor]
    schedulers: list[dict[str, Any]]
    rates: list[list[float]]

    @classmethod
    def take(cls, trainer: Trainer, *, weights: bool) -> Snapshot:
        """The state of now."""
        return cls(
            {name: tensor.detach().cpu().clone() for name, tensor in _tensors(trainer.lightning_module).items()}
            if weights
            else {},
            [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers],
        )

    @torch.no_grad()
    def restore_(self, trainer: Trainer) -> None:
        """Brings the state back, in place; with the weights, optimizers forget their momenta."""
        tensors = _tensors(trainer.lightning_module)
        for name, value in self.weights.items():
            tensors[name].copy_(value)
        for config, state in zip(trainer.lr_scheduler_configs, self.schedulers, strict=True):
            config.scheduler.load_state_dict(copy.deepcopy(state))
        for optimizer, rates in zip(trainer.optimizers, self.rates, strict=True):
            if self.weights:
                optimizer.state.clear()
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate

    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for a checkpoint."""
        return {"weights": self.weights, "schedulers": self.schedulers, "rates": self.rates}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Snapshot:
        """The snapshot that :meth:`state_dict` was of."""
        return cls(**state)


def _tensors(module: LightningModule) -> dict[str, Tensor]:
    trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
    return {**trainable, **dict(module.named_buffers())}
