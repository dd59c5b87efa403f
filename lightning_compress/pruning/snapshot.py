"""Snapshot of the state of a fit that pruning rewinds to."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_compress.constraints.layer import local_shard
from lightning_compress.sharded_modules import reshard, shard_of


@dataclass
class Snapshot:
    """Learning-rate schedules at one moment of a fit, and optionally the weights.

    Attributes:
        weights: Trainable parameters and buffers by name, on the CPU, of sharded parameters this rank's shards; none
            if only the learning rate is rewound.
        schedulers: State of each learning-rate scheduler.
        rates: Learning rates of the parameter groups of each optimizer.
        sharded: The sharded parameters of the model by name.
    """

    weights: dict[str, Tensor]
    schedulers: list[dict[str, Any]]
    rates: list[list[float]]
    sharded: dict[str, DTensor] = field(default_factory=dict)

    @classmethod
    def take(cls, trainer: Trainer, *, weights: bool) -> Snapshot:
        """Return a snapshot of the current state."""
        model = trainer.lightning_module
        return cls(
            {name: tensor.detach().cpu().clone() for name, tensor in _local_tensors(model).items()} if weights else {},
            [copy.deepcopy(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            [[float(group["lr"]) for group in optimizer.param_groups] for optimizer in trainer.optimizers],
            _sharded(model),
        )

    @torch.no_grad()
    def restore_(self, trainer: Trainer) -> None:
        """Restore the state in place; with weights, the state of the optimizers is cleared."""
        tensors = _local_tensors(trainer.lightning_module)
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
        """Return the snapshot as plain values and full tensors, for a checkpoint; a collective if sharded."""
        weights = {name: self._full(name, value) for name, value in self.weights.items()}
        return {"weights": weights, "schedulers": self.schedulers, "rates": self.rates}

    @classmethod
    def from_state(cls, state: dict[str, Any], model: nn.Module) -> Snapshot:
        """Return the snapshot of a model from the result of :meth:`state_dict`."""
        sharded = _sharded(model)
        shards = {name: shard_of(full, sharded.get(name, full)).cpu() for name, full in state["weights"].items()}
        return cls(shards, state["schedulers"], state["rates"], sharded)

    def _full(self, name: str, value: Tensor) -> Tensor:
        parameter = self.sharded.get(name)
        if parameter is None:
            return value
        mesh, placements = parameter.device_mesh, parameter.placements
        shape, stride = parameter.shape, parameter.stride()
        local = value.to(parameter.device)
        return DTensor.from_local(local, mesh, placements, shape=shape, stride=stride).full_tensor().cpu()


def _sharded(module: nn.Module) -> dict[str, DTensor]:
    reshard(module)
    return {name: parameter for name, parameter in module.named_parameters() if isinstance(parameter, DTensor)}


def _local_tensors(module: nn.Module) -> dict[str, Tensor]:
    reshard(module)
    trainable = {name: local_shard(p.detach()) for name, p in module.named_parameters() if p.requires_grad}
    return {**trainable, **dict(module.named_buffers())}
