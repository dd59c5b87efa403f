"""Batch-norm statistics estimated anew after weights have changed at a stroke."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_compress.trainer.probe import TrainingProbe


def recalibrate_norms(trainer: Trainer, probe: TrainingProbe, *, num_batches: int, seed: int) -> None:
    """Averages batch-norm statistics over training batches, in a copy, and puts them into the model.

    Args:
        trainer: The Trainer of the fit.
        probe: The copy.
        num_batches: Number of batches on each rank; ranks see different ones and average.
        seed: Seed of the choice of batches.
    """
    probe.model.eval()
    for norm in _norms(probe.model).values():
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    with isolate_rng(), torch.no_grad():
        for batch in _batches(trainer, num_batches, seed):
            probe.batch = batch
            probe.loss()
    for fresh, norm in zip(_norms(probe.model).values(), _norms(trainer.lightning_module).values(), strict=True):
        for statistic in ("running_mean", "running_var"):
            getattr(norm, statistic).copy_(*probe.reduce([getattr(fresh, statistic)]))


def check_loader(trainer: Trainer) -> None:
    """Refuses training data of which batches cannot be chosen.

    Raises:
        ValueError: Unless it is one DataLoader over a map-style dataset, with a batch size.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or not loader.batch_size:
        raise ValueError("recalibrate needs a training DataLoader over a map-style dataset, with a batch_size.")


def _norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._NormBase]:
    """Batch norms that track statistics, by name."""
    norms = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase))
    return {name: norm for name, norm in norms if norm.running_mean is not None}


def _batches(trainer: Trainer, num_batches: int, seed: int) -> Iterator[Any]:
    """Batches of training data as the training step gets them, from a loader of their own."""
    loader = trainer.train_dataloader
    assert loader is not None
    torch.manual_seed(seed)
    order = torch.randperm(len(loader.dataset)).tolist()[: num_batches * loader.batch_size * trainer.world_size]
    mine = Subset(loader.dataset, order[trainer.global_rank :: trainer.world_size])
    for batch in DataLoader(mine, batch_size=loader.batch_size, collate_fn=loader.collate_fn):
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)
