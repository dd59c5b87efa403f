"""Re-estimation of batch-norm statistics after an update of the masks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset

from lightning_compress.trainer.batches import prepare_batch
from lightning_compress.trainer.probe import TrainingProbe


def recalibrate_norms(trainer: Trainer, probe: TrainingProbe, *, num_batches: int, seed: int) -> None:
    """Average batch-norm statistics over training batches in a copy of the model, and write them into the model.

    Args:
        trainer: The Trainer of the fit.
        probe: The copy of the model.
        num_batches: Number of batches on each rank; ranks use different batches, and their statistics are averaged.
        seed: Seed of the choice of batches.
    """
    with isolate_rng(), torch.no_grad():
        try:
            _observe(probe, _batches(trainer, num_batches, seed), training=False)
        except Exception:  # a network that answers otherwise in training, which training_step is written for
            _observe(probe, _batches(trainer, num_batches, seed), training=True)
    for fresh, norm in zip(_norms(probe.model).values(), _norms(trainer.lightning_module).values(), strict=True):
        if not fresh.num_batches_tracked:  # not called, such as in an auxiliary head outside of training
            continue
        for statistic in ("running_mean", "running_var"):
            getattr(norm, statistic).copy_(*probe.reduce([getattr(fresh, statistic)]))


def _observe(probe: TrainingProbe, batches: Iterable[Any], *, training: bool) -> None:
    """Average the statistics of all batches in the copy; dropout, which would change them, stays off."""
    for module in probe.model.modules():
        module.training = training and any(True for _ in module.children())
    for norm in _norms(probe.model).values():
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average over all batches
        norm.train()
    for batch in batches:
        probe.batch = batch
        probe.step()


def check_loader(trainer: Trainer) -> None:
    """Check that batches can be chosen from the training data.

    Raises:
        ValueError: If it is not a single DataLoader over a map-style dataset with a batch size.
    """
    loader = trainer.train_dataloader
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or not loader.batch_size:
        raise ValueError("recalibrate needs a training DataLoader over a map-style dataset, with a batch_size.")


def _norms(model: nn.Module) -> dict[str, nn.modules.batchnorm._NormBase]:
    """Return the batch norms that track running statistics, by name."""
    norms = ((n, m) for n, m in model.named_modules() if isinstance(m, nn.modules.batchnorm._NormBase))
    return {name: norm for name, norm in norms if norm.running_mean is not None}


def _batches(trainer: Trainer, num_batches: int, seed: int) -> Iterator[Any]:
    """Yield random batches as ``training_step`` receives them, from a separate loader."""
    loader = trainer.train_dataloader
    assert loader is not None
    torch.manual_seed(seed)
    order = torch.randperm(len(loader.dataset)).tolist()[: num_batches * loader.batch_size * trainer.world_size]
    subset = Subset(loader.dataset, order[trainer.global_rank :: trainer.world_size])
    for batch in DataLoader(subset, batch_size=loader.batch_size, collate_fn=loader.collate_fn):
        yield prepare_batch(trainer, trainer.lightning_module, batch)
