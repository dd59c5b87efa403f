"""Dry run of one training step on a copy of the module, before the fit."""

from __future__ import annotations

from typing import Any, TypeVar, cast

from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn

from lightning_compress.targets import shorten
from lightning_compress.trainer.probe import TrainingProbe

AnyModule = TypeVar("AnyModule", bound=LightningModule)


class ComparisonError(ValueError):
    """A student and its teachers cannot be compared as specified, so that no training step will succeed."""


def dry_run(module: AnyModule, batch: Any) -> AnyModule:
    """Run the forward and backward pass of one training step on a copy of a module.

    Args:
        module: Module that is attached to a Trainer; left unchanged.
        batch: Batch on the CPU.

    Returns:
        The copy, with the gradients of the step.

    Raises:
        ComparisonError: If student and teachers cannot be compared. Any other error may be due to the dry run.
    """
    probe = TrainingProbe(module.trainer, module, batch, 0)
    # The strategy converts the model itself only after setup.
    module.trainer.precision_plugin.convert_module(probe.model)
    probe.loss().backward()
    return cast(AnyModule, probe.model)


def warn_unused_parameters(student: nn.Module) -> None:
    """Warn about trainable parameters that have no gradient after a backward pass.

    Args:
        student: Network of the student after :func:`dry_run`.
    """
    unused = [name for name, p in student.named_parameters() if p.requires_grad and p.grad is None]
    if unused:
        rank_zero_warn(
            f"The loss does not depend on {shorten(unused)} of the student: raise task_weight or choose later layers, "
            "freeze them, or under DDP set strategy='ddp_find_unused_parameters_true'."
        )
