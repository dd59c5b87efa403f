"""Construction of teacher networks from their specifications."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from lightning_compress.arguments import reason
from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.image_conversion import Conversion, Normalization
from lightning_compress.distillation.mean_teacher import MeanTeacherNetwork
from lightning_compress.distillation.peer import PeerNetwork
from lightning_compress.distillation.teacher import MeanTeacher, Peer, Teacher
from lightning_compress.models.classification import ClassificationModule
from lightning_compress.models.timm_networks import create_network
from lightning_compress.models.weights import load_weights_

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}

TeacherSpec = Teacher | MeanTeacher | Peer


def build_teacher(
    teacher: TeacherSpec,
    *,
    student: nn.Module,
    num_classes: int | None,
    layers: Sequence[str],
    student_normalization: Normalization | None,
    cache: Path | None,
) -> FrozenNetwork:
    """Build the network of a teacher and load its weights.

    Args:
        teacher: Specification of the teacher.
        student: Network of the student.
        num_classes: Number of classes of the student, or ``None`` if unknown.
        layers: Names of the teacher's modules to record.
        student_normalization: Normalization of the student's images, or ``None`` for that of its timm configuration.
        cache: Directory of the cached logits, or ``None``.

    Raises:
        ValueError: If the teacher cannot be built, or its weights do not fit.
    """
    if isinstance(teacher, MeanTeacher):
        # The name is part of the identity in checkpoints.
        return MeanTeacherNetwork(student, decay=teacher.decay, name="mean of the student", layers=layers)
    if isinstance(teacher, Peer):
        network = teacher.model if isinstance(teacher.model, nn.Module) else _create_peer(teacher, num_classes)
        return PeerNetwork(network, name=_name(teacher.model), layers=layers, inputs=teacher.inputs)
    network = teacher.model if isinstance(teacher.model, nn.Module) else _load(teacher, num_classes)
    return FrozenNetwork(
        network,
        name=_name(teacher.model),
        dtype=_DTYPES[teacher.precision],
        compiled=teacher.compile,
        layers=layers,
        conversion=_conversion(teacher, _data_config(network), student_normalization, _data_config(student)),
        cache=cache,
        inputs=teacher.inputs,
        output=teacher.output,
    )


def _name(model: str | nn.Module) -> str:
    return model if isinstance(model, str) else type(model).__name__


def _create_peer(teacher: Peer, num_classes: int | None) -> nn.Module:
    return create_network(
        str(teacher.model), _arguments(teacher.model_kwargs, teacher.num_classes or num_classes), argument="peer"
    )


def _load(teacher: Teacher, num_classes: int | None) -> nn.Module:
    assert isinstance(teacher.model, str)
    if teacher.model.endswith(".ckpt"):
        return load_module(teacher.model, "teacher").model
    # timm gives a pretrained network with another number of classes a random head, so it keeps its own.
    default = num_classes if teacher.checkpoint is not None else None
    arguments = _arguments(teacher.model_kwargs, teacher.num_classes or default)
    if teacher.checkpoint is None:
        return _create_pretrained(teacher.model, arguments)
    network = create_network(teacher.model, arguments, argument="teacher")
    load_weights_(network, teacher.checkpoint)
    return network


def _arguments(model_kwargs: dict[str, Any], num_classes: int | None) -> dict[str, Any]:
    return {**model_kwargs, **({"num_classes": num_classes} if num_classes else {})}


def _create_pretrained(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return create_network(name, {"pretrained": True, **arguments}, argument="teacher")
    except ValueError:
        raise
    except Exception as error:  # the download fails with the errors of several libraries
        raise ValueError(
            f"The pretrained weights of teacher {name!r} cannot be loaded ({reason(error)}): give "
            "Teacher(checkpoint=...)."
        ) from error


def load_module(path: str, argument: str) -> ClassificationModule:
    """Load the module of a Lightning checkpoint.

    Args:
        path: Path of the checkpoint.
        argument: Name of the argument in the error message.

    Raises:
        ValueError: If the file is not a checkpoint of a ``ClassificationModule`` with a timm network.
    """
    try:
        return ClassificationModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"{argument}={path!r} is not a checkpoint of a ClassificationModule with a timm name ({reason(error)}): "
            "load the network yourself and pass it."
        ) from error


def _data_config(network: nn.Module | None) -> dict[str, Any] | None:
    """Return timm's data configuration of a network, or None for a network that is not timm's."""
    is_configured = network is not None and getattr(network, "pretrained_cfg", None)
    return resolve_model_data_config(network) if is_configured else None


def _conversion(
    teacher: Teacher,
    teacher_config: dict[str, Any] | None,
    student_normalization: Normalization | None,
    student_config: dict[str, Any] | None,
) -> Conversion | None:
    have = student_normalization or _normalization(student_config)
    want = teacher.normalization or _normalization(teacher_config)
    if teacher.normalization is not None and have is None:
        raise ValueError(
            "Teacher(normalization=...) needs the normalization of the student's images: set the DistillationModule's "
            "normalization, too."
        )
    size = teacher.input_size
    # Only where both sizes are known and differ: a network of the user may be trained on images of any size.
    if (
        size is None
        and student_config
        and teacher_config
        and student_config["input_size"] != teacher_config["input_size"]
    ):
        size = tuple(teacher_config["input_size"][1:])
    return Conversion(have, want, size) if (have and want and have != want) or size is not None else None


def _normalization(config: dict[str, Any] | None) -> Normalization | None:
    return Normalization(config["mean"], config["std"]) if config else None


def has_network(teacher: TeacherSpec) -> bool:
    """Return True if a specification contains a network."""
    return isinstance(getattr(teacher, "model", None), nn.Module)


def is_plain(teacher: TeacherSpec) -> bool:
    """Return True if plain data can represent a specification: it contains neither a network nor a function."""
    return not has_network(teacher) and getattr(teacher, "inputs", None) is None


def as_teachers(teacher: Any) -> list[TeacherSpec]:
    """Convert one teacher or a list of teachers, in any supported form, to specifications.

    Raises:
        ValueError: For an unsupported form.
    """
    if teacher is None:
        return []
    teachers = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    return [_as_teacher(each) for each in teachers]


def _as_teacher(teacher: Any) -> TeacherSpec:
    if isinstance(teacher, Mapping):
        return Teacher(**teacher)
    if isinstance(teacher, Path):
        return Teacher(str(teacher))
    if isinstance(teacher, (str, nn.Module)):
        return Teacher(teacher)
    if not isinstance(teacher, (Teacher, MeanTeacher, Peer)):
        raise ValueError(
            f"teacher={teacher!r} is not supported: give a timm name, a network, an lc.Teacher, or a list of them."
        )
    return teacher
