"""Batch-norm statistics estimated anew after weights have changed at a stroke."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_compress.callbacks.probe import TrainingProbe


def recalibrate_norms(trainer: Trainer, probe: TrainingProbe, *, num_batches: int, seed: int) -> None:
    """Averages batch-norm statistics over training batches, in a copy, and puts them into the model.

    Args:
        trainer: The Trainer of the fit.
        probe: The copy.
        num_batches: Number of batches on each rank; ranks see different ones and average.
        seed: Seed of the choice of batches.
    """
    model = trainer.lightning_module
    names = [name for name, m in model.named_modules() if _tracks(m)]
    probe.model.eval()
    for name in names:
        norm = probe.model.get_submodule(name)
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    with isolate_rng(), torch.no_grad():
        for batch in _batches(trainer, num_batches, seed):
            probe.batch = batch
            probe.loss()
    for name in names:
        for statistic in ("running_mean", "running_var"):
            mean = getattr(probe.model.get_submodule(name), statistic)
            getattr(model.get_submodule(name), statistic).copy_(*probe.reduce([mean]))


def _tracks(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase) and module.running_mean is not None


def _batches(trainer: Trainer, num_batches: int, seed: int) -> Iterator[Any]:
    """Batches of training data as the training step gets them, from a loader of their own."""
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or not loader.batch_size:
        raise ValueError("recalibrate needs a training DataLoader over a map-style dataset, with a batch_size.")
    torch.manual_seed(seed)
    order = torch.randperm(len(loader.dataset)).tolist()[: num_batches * loader.batch_size * trainer.world_size]
    mine = Subset(loader.dataset, order[trainer.global_rank :: trainer.world_size])
    for batch in DataLoader(mine, batch_size=loader.batch_size, collate_fn=loader.collate_fn):
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)
