"""Validation accuracy of a teacher, measured before the student is trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress.distillation.batch_formats import extract_annotations
from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.logit_formats import extract_logits, find_positions


def teacher_accuracy(
    trainer: Trainer, module: LightningModule, teacher: FrozenNetwork, class_dim: int | None = None
) -> float | None:
    """Measure the top-1 accuracy of a teacher on the validation data of a fit, over all ranks.

    The states of the random number generators are restored. Warns if the accuracy is below twice that of chance.

    Args:
        trainer: Trainer at the start of training.
        module: Module that is trained; batches pass through its hooks.
        teacher: The teacher.
        class_dim: Dimension of the classes, as of :func:`find_positions`.

    Returns:
        Accuracy in [0, 1] over all positions with a label; or ``None`` without validation batches of the form
        ``(inputs, classes)`` or of keyword arguments, or if the teacher does not take them as the loader returns them.
    """
    if not trainer.enable_validation:
        return None
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.setup_data()
    if not trainer.val_dataloaders:
        return None
    metric: MulticlassAccuracy | None = None
    stage, trainer.state.stage = trainer.state.stage, RunningStage.VALIDATING
    try:
        # Nothing depends on this accuracy: whatever fails here would fail in a step, too, or is due to inputs that a
        # step converts before it calls its network.
        with isolate_rng(), suppress(Exception):
            batches = _validation_batches(trainer, module, int(min(loop.max_batches[0], 2**31)))
            metric = _evaluate(trainer, batches, teacher, class_dim)
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


def _validation_batches(trainer: Trainer, module: LightningModule, limit: int) -> Iterator[Any]:
    loaders: Any = trainer.val_dataloaders
    for batch in islice(loaders[0] if isinstance(loaders, list) else loaders, limit):
        batch = module._on_before_batch_transfer(trainer.precision_plugin.convert_input(batch), dataloader_idx=0)
        yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _evaluate(
    trainer: Trainer, batches: Iterable[Any], teacher: FrozenNetwork, class_dim: int | None
) -> MulticlassAccuracy | None:
    """Return the metric of this rank's batches, or None if there are none, or one has no classes."""
    metric: MulticlassAccuracy | None = None
    for batch in batches:
        annotations = extract_annotations(batch, {})
        if not annotations.labels:
            return None
        args, kwargs = ((), dict(batch)) if isinstance(batch, Mapping) else (batch[:1], {})
        with trainer.precision_plugin.val_step_context(), teacher.features.record():
            output = teacher.forward(*teacher.arguments(args, kwargs, batch))
        logits = extract_logits(output, "teacher")[0]
        positions = find_positions(logits, annotations, class_dim=class_dim)
        rows, labels = positions.rows(logits), positions.labels
        if labels is None or labels.is_floating_point() or rows.shape[1] < 2:
            return None
        metric = metric or _metric(rows.shape[1], rows.device)
        metric.update(rows, labels)
    return metric


def _metric(num_classes: int, device: torch.device) -> MulticlassAccuracy:
    # Unvalidated: labels need not be among the classes of the teacher, and count as errors then.
    return MulticlassAccuracy(num_classes, average="micro", validate_args=False).to(device)
