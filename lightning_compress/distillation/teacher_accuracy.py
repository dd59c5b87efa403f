"""How good a teacher is, before anything is learned from it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from lightning_compress.distillation.batch_formats import labels_of, logits_of
from lightning_compress.distillation.frozen_network import FrozenNetwork


def accuracy(trainer: Trainer, module: LightningModule, teacher: FrozenNetwork) -> float | None:
    """Part of a fit's validation samples that a teacher classifies rightly, over all ranks.

    Leaves random numbers as they were. A teacher not much better than chance is warned of.

    Args:
        trainer: The Trainer, at the start of training.
        module: The module whose batches are looked at.
        teacher: The teacher.

    Returns:
        The accuracy in [0, 1]; ``None`` if there are no validation batches of ``(inputs, classes)``.
    """
    if not trainer.enable_validation:
        return None
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.setup_data()
    if not trainer.val_dataloaders:
        return None
    stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
    try:
        with isolate_rng():
            counts = _count(trainer, module, teacher, int(min(loop.max_batches[0], 2**31)))
    finally:
        trainer.state.stage = stage
    right, total, classes = trainer.strategy.reduce(counts, reduce_op="sum").tolist()
    if not total:
        return None
    if right / total < 2 * total / classes:
        rank_zero_warn(
            f"The teacher {teacher.identity['name']!r} is right for {right / total:.1%} of the validation samples: is "
            "it trained, and are images normalised and sized as it wants?"
        )
    return float(right / total)


def _count(trainer: Trainer, module: LightningModule, teacher: FrozenNetwork, limit: int) -> Tensor:
    """Samples that are right, samples, and samples times classes."""
    counts = torch.zeros(3, dtype=torch.double, device=module.device if module.device.type != "mps" else "cpu")
    loaders: Any = trainer.val_dataloaders
    for batch in islice(loaders[0] if isinstance(loaders, list) else loaders, limit):
        batch = module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        labels = labels_of(batch)
        if isinstance(batch, Mapping) or labels is None or labels.ndim != 1 or not isinstance(batch[0], Tensor):
            return counts * 0
        with trainer.precision_plugin.val_step_context(), teacher.forward(batch[:1], {}) as output:
            logits = logits_of(output, "teacher")
        right = (logits.argmax(1) == labels).sum()
        counts += torch.stack([right, torch.tensor(len(labels)).to(right), torch.tensor(logits.numel()).to(right)])
    return counts
