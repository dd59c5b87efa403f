"""Validation accuracy of a teacher, measured before the student is trained."""

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
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress.distillation.batch_formats import extract_labels, extract_logits
from lightning_compress.distillation.frozen_network import FrozenNetwork


def teacher_accuracy(trainer: Trainer, module: LightningModule, teacher: FrozenNetwork) -> float | None:
    """Measure the top-1 accuracy of a teacher on the validation data of a fit, over all ranks.

    The states of the random number generators are restored. Warns if the accuracy is below twice that of chance.

    Args:
        trainer: Trainer at the start of training.
        module: Module that is trained; batches pass through its hooks.
        teacher: The teacher.

    Returns:
        Accuracy in [0, 1], or ``None`` without validation batches of the form ``(inputs, classes)``.
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
            metric = _evaluate(trainer, module, teacher, int(min(loop.max_batches[0], 2**31)))
    finally:
        trainer.state.stage = stage
    # A rank without usable batches does not know the number of classes, but must participate when the metric is
    # synchronized.
    own_classes = torch.tensor(metric.num_classes if metric else 0, device=module.device)
    num_classes = int(trainer.strategy.reduce(own_classes, reduce_op="max"))
    if not num_classes:
        return None
    accuracy: Tensor = (metric or _metric(num_classes, module.device)).compute()
    if accuracy < 2 / num_classes:
        rank_zero_warn(
            f"The teacher {teacher.identity['name']!r} has an accuracy of {accuracy:.1%} on the validation samples: "
            "check that it is trained, and that images have the normalization and size that it expects."
        )
    return float(accuracy)


def _evaluate(
    trainer: Trainer, module: LightningModule, teacher: FrozenNetwork, limit: int
) -> MulticlassAccuracy | None:
    """Return the metric of this rank's batches, or None if they are not of the form ``(inputs, classes)``."""
    metric: MulticlassAccuracy | None = None
    loaders: Any = trainer.val_dataloaders
    for batch in islice(loaders[0] if isinstance(loaders, list) else loaders, limit):
        batch = module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
        batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        labels = extract_labels(batch)
        if isinstance(batch, Mapping) or labels is None or labels.ndim != 1 or not isinstance(batch[0], Tensor):
            return None
        with trainer.precision_plugin.val_step_context():
            logits = extract_logits(teacher.forward(batch[:1], {}), "teacher")
        metric = metric or _metric(logits.shape[1], module.device)
        metric.update(logits, labels)
    return metric


def _metric(num_classes: int, device: torch.device) -> MulticlassAccuracy:
    # Unvalidated: labels need not be among the classes of the teacher, and count as errors then.
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False).to(device)
