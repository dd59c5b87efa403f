"""A step that is tried before the fit."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_map

from lightning_compress.targets import shorten
from lightning_compress.trainer.lightning import averaged_models
from lightning_compress.trainer.probe import TrainingProbe

if TYPE_CHECKING:
    from lightning_compress.distillation.module import DistillationModule

_FEW = 4


def dry_run(module: DistillationModule, batch: Any) -> None:
    """Makes a training step of a copy on a few samples: its adapters are taken over, and what it lacks is told.

    Args:
        module: The module; of it only the adapters are changed.
        batch: A batch on the CPU.

    Raises:
        ValueError: If features or logits of student and teacher cannot be compared.
    """
    probe = TrainingProbe(module.trainer, module, _some(batch), 0)
    copy: Any = probe.model
    # As the strategy will do it with the model.
    module.trainer.precision_plugin.convert_module(copy)
    copy._keys = None
    probe.loss().backward()
    idle = [name for name, p in copy.student.named_parameters() if p.requires_grad and p.grad is None]
    if idle:
        rank_zero_warn(
            f"The loss does not depend on {shorten(idle)} of the student: raise task_weight or choose later layers, "
            "freeze them, or under DDP set strategy='ddp_find_unused_parameters_true'."
        )
    copy.objective.zero_grad(set_to_none=True)
    module.objective.take(copy.objective)
    # Averages of the weights were copied before there were adapters.
    for average in averaged_models(module.trainer):
        average.objective.take(deepcopy(copy.objective))  # type: ignore[union-attr, operator]


def _some(batch: Any) -> Any:
    """The first samples of a batch."""
    return tree_map(lambda value: value[:_FEW] if isinstance(value, Tensor) and value.ndim else value, batch)
