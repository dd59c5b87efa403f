"""Construction of the student's LightningModule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from lightning_compress.distillation.teacher_loading import TeacherSpec, load_module
from lightning_compress.models.classification import ClassificationModule, sgd
from lightning_compress.trainer.queries import is_a


def build_student(
    student: str | nn.Module | Mapping[str, Any],
    teachers: Sequence[TeacherSpec],
    num_classes: int | None,
    optimizer: OptimizerCallable | None,
    lr_scheduler: LRSchedulerCallable | None,
    model_kwargs: dict[str, Any] | None,
) -> LightningModule:
    """Build the student's LightningModule.

    Args:
        student: A LightningModule, which is returned; else a timm name, a checkpoint (``.ckpt``), a network, or
            arguments of a ``ClassificationModule``.
        teachers: Teachers, from which the number of classes is taken if nothing else determines it.
        num_classes: Number of classes.
        optimizer: Function from parameters to the optimizer.
        lr_scheduler: Function from the optimizer to the scheduler.
        model_kwargs: Further arguments of the timm network.

    Raises:
        ValueError: If the student cannot be built, or arguments are given that it has already.
    """
    if isinstance(student, LightningModule):
        if optimizer or lr_scheduler or model_kwargs or num_classes:
            raise ValueError(
                f"The student {type(student).__name__} is a LightningModule, which has a network and an optimizer: "
                "leave out optimizer, lr_scheduler, model_kwargs and num_classes."
            )
        return student
    check_not_foreign(student["model"] if isinstance(student, Mapping) and "model" in student else student)
    student = str(student) if isinstance(student, Path) else student
    if not isinstance(student, (str, nn.Module, Mapping)):
        raise ValueError(
            f"student={student!r} is not supported: give a LightningModule, a timm name, a network or a .ckpt file."
        )
    if isinstance(student, str) and student.endswith(".ckpt"):
        module = load_module(student, "student")
        # A checkpoint does not store functions.
        module.optimizer, module.lr_scheduler = optimizer or sgd, lr_scheduler
        return module
    arguments: dict[str, Any] = (
        dict(student) if isinstance(student, Mapping) else {"model": student, "model_kwargs": model_kwargs}
    )
    classes = arguments.pop("num_classes", None) or num_classes or _find_num_classes(student, teachers)
    return ClassificationModule(num_classes=classes, optimizer=optimizer or sgd, lr_scheduler=lr_scheduler, **arguments)


def check_not_foreign(student: Any) -> None:
    """Check that a student is not a LightningModule that would be trained as a plain network.

    Raises:
        ValueError: For a compiled LightningModule, or one of another package.
    """
    network = getattr(student, "_orig_mod", student)
    if not is_a(network, "LightningModule"):
        return
    name = type(network).__name__
    if isinstance(network, LightningModule):
        raise ValueError(
            f"The student {name} is a LightningModule, whose own training_step is to be run: pass it as student=..., "
            "without torch.compile, and compile its network or the DistillationModule."
        )
    package = next(base for base in type(network).__mro__ if base.__name__ == "LightningModule").__module__
    raise ValueError(
        f"The student {name} is a LightningModule of {package.partition('.')[0]!r}, which cannot run inside a "
        "DistillationModule of 'lightning': import LightningModule and Trainer from lightning.pytorch in its file "
        "instead, or pass its network to train it as a ClassificationModule."
    )


def check_student(student: LightningModule) -> None:
    """Check that a student can be trained inside another module.

    Raises:
        ValueError: For a student with manual optimization.
    """
    name = type(student).__name__
    if not student.automatic_optimization:
        raise ValueError(
            f"The student {name} uses manual optimization, so nothing can be added to its loss: use automatic "
            "optimization."
        )


def student_hparams(student: LightningModule) -> dict[str, Any] | None:
    """Return the arguments to rebuild a student from a checkpoint, or None if they include objects."""
    is_plain = isinstance(student, ClassificationModule) and "model" in student.hparams
    return dict(student.hparams) if is_plain else None


def infer_num_classes(module: nn.Module) -> int | None:
    """Return the number of classes of a network: its ``num_classes``, else the width of its last linear layer.

    >>> infer_num_classes(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)))
    3
    """
    if isinstance(module, ClassificationModule):
        return module.val_acc.num_classes
    declared = getattr(module, "num_classes", None)
    widths = [layer.out_features for layer in module.modules() if isinstance(layer, nn.Linear)]
    return declared if isinstance(declared, int) else next(reversed(widths), None)


def _find_num_classes(student: Any, teachers: Sequence[TeacherSpec]) -> int:
    candidates = [infer_num_classes(student)] if isinstance(student, nn.Module) else []
    for teacher in teachers:
        network = getattr(teacher, "model", None)
        candidates.append(
            infer_num_classes(network) if isinstance(network, nn.Module) else getattr(teacher, "num_classes", None)
        )
    num_classes = next((number for number in candidates if number), None)
    if num_classes is None:
        raise ValueError("Neither the student nor the teacher determines the number of classes: give num_classes.")
    return num_classes
