"""From what a user calls a student to the LightningModule that is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from lightning_compress.distillation.teacher_loading import Taught, load_network
from lightning_compress.models.classification import ClassificationModule, sgd


def make_student(
    student: str | nn.Module | Mapping[str, Any],
    teachers: Sequence[Taught],
    num_classes: int | None,
    optimizer: OptimizerCallable | None,
    lr_scheduler: LRSchedulerCallable | None,
    model_kwargs: dict[str, Any] | None,
) -> LightningModule:
    """The student's LightningModule.

    Args:
        student: It itself, a timm name, a checkpoint, a network, or arguments of a ``ClassificationModule``.
        teachers: Whose number of classes a named student or a network takes, if it is told no other.
        num_classes: That other.
        optimizer: Makes its optimizer, if it is not a LightningModule already.
        lr_scheduler: Makes its scheduler, likewise.
        model_kwargs: Further arguments of a timm name.

    Raises:
        ValueError: If it cannot be built.
    """
    if isinstance(student, LightningModule):
        if optimizer or lr_scheduler or model_kwargs or num_classes:
            raise ValueError(
                f"The student {type(student).__name__} is a LightningModule, which has a network and an optimizer: "
                "leave out optimizer, lr_scheduler, model_kwargs and num_classes."
            )
        return student
    student = str(student) if isinstance(student, Path) else student
    if not isinstance(student, (str, nn.Module, Mapping)):
        raise ValueError(
            f"student={student!r} is none: give a LightningModule, a timm name, a network or a .ckpt file."
        )
    if isinstance(student, str) and student.endswith(".ckpt"):
        module = load_network(student, "student")
        module.optimizer, module.lr_scheduler = optimizer or sgd, lr_scheduler
        return module
    given: dict[str, Any] = (
        dict(student) if isinstance(student, Mapping) else {"model": student, "model_kwargs": model_kwargs}
    )
    classes = given.pop("num_classes", None) or num_classes or _classes(student, teachers)
    return ClassificationModule(num_classes=classes, optimizer=optimizer or sgd, lr_scheduler=lr_scheduler, **given)


def check_student(student: LightningModule) -> None:
    """Refuses students that cannot be trained inside another module.

    Raises:
        ValueError: For a student that optimizes by hand, and for one that is built in ``configure_model``.
    """
    name = type(student).__name__
    if not student.automatic_optimization:
        raise ValueError(f"The student {name} optimizes by hand, so nothing can be added to its loss: it must not.")
    if is_overridden("configure_model", student):
        raise ValueError(f"The student {name} is built in configure_model: build it in __init__.")


def arguments_of(student: LightningModule) -> dict[str, Any] | None:
    """Arguments that make the same student again, if plain data is enough."""
    plain = isinstance(student, ClassificationModule) and "model" in student.hparams
    return dict(student.hparams) if plain else None


def num_classes_of(module: nn.Module) -> int | None:
    """Number of a network's classes: what timm networks say, else the width of the last linear layer."""
    if isinstance(module, ClassificationModule):
        return module.val_acc.num_classes
    said = getattr(module, "num_classes", None)
    linears = [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)]
    return said if isinstance(said, int) else next(reversed(linears), None)


def _classes(student: Any, teachers: Sequence[Taught]) -> int:
    known = [num_classes_of(student)] if isinstance(student, nn.Module) else []
    for teacher in teachers:
        network = getattr(teacher, "model", None)
        known.append(
            num_classes_of(network) if isinstance(network, nn.Module) else getattr(teacher, "num_classes", None)
        )
    found = next((number for number in known if number), None)
    if found is None:
        raise ValueError("The number of classes is known neither of the student nor of the teacher: give num_classes.")
    return found
