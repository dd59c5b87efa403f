"""From a specification to the network that is asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm.data.config import resolve_model_data_config
from torch import nn

from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.image_conversion import Conversion, Normalization
from lightning_compress.distillation.mean_teacher import MeanNetwork
from lightning_compress.distillation.peer import PeerNetwork
from lightning_compress.distillation.teacher import MeanTeacher, Peer, Teacher
from lightning_compress.models.classification import ClassificationModule, create
from lightning_compress.models.weights import load_weights_

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, None: None}


Taught = Teacher | MeanTeacher | Peer
"""What says by whom a student is taught."""


def build_teacher(
    teacher: Taught,
    *,
    student: nn.Module,
    num_classes: int | None,
    taps: Sequence[str],
    images: Normalization | None,
    cache: Path | None,
) -> FrozenNetwork:
    """Builds a teacher's network and loads its weights.

    Args:
        teacher: Which one.
        student: The student's network.
        num_classes: Number of its classes, where it is known.
        taps: Names of the teacher's modules whose outputs are wanted.
        images: How the student's images are normalised; by default as its timm configuration says.
        cache: Directory in which logits are kept, if they are.

    Raises:
        ValueError: If it cannot be built, or its weights do not fit.
    """
    if isinstance(teacher, MeanTeacher):
        return MeanNetwork(student, decay=teacher.decay, name="mean of the student", taps=taps)
    if isinstance(teacher, Peer):
        network = teacher.model if isinstance(teacher.model, nn.Module) else _peer(teacher, num_classes)
        return PeerNetwork(network, name=_name(teacher.model), taps=taps)
    network = teacher.model if isinstance(teacher.model, nn.Module) else _named(teacher, num_classes)
    return FrozenNetwork(
        network,
        name=_name(teacher.model),
        dtype=_DTYPES[teacher.precision],
        compiled=teacher.compile,
        taps=taps,
        conversion=_conversion(teacher, _config(network), images, _config(student)),
        cache=cache,
    )


def _name(model: str | nn.Module) -> str:
    return model if isinstance(model, str) else type(model).__name__


def _peer(teacher: Peer, num_classes: int | None) -> nn.Module:
    classes = teacher.num_classes or num_classes
    return create(
        str(teacher.model), {**teacher.model_kwargs, **({"num_classes": classes} if classes else {})}, what="peer"
    )


def _named(teacher: Teacher, num_classes: int | None) -> nn.Module:
    assert isinstance(teacher.model, str)
    if teacher.model.endswith(".ckpt"):
        return load_network(teacher.model, "teacher").model
    # A pretrained network with another number of classes has a random head, so it keeps its own.
    classes = teacher.num_classes or (num_classes if teacher.checkpoint is not None else None)
    arguments = {**teacher.model_kwargs, **({"num_classes": classes} if classes else {})}
    if teacher.checkpoint is None:
        return _pretrained(teacher.model, arguments)
    network = create(teacher.model, arguments, what="teacher")
    load_weights_(network, teacher.checkpoint)
    return network


def _pretrained(name: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        return create(name, {"pretrained": True, **arguments}, what="teacher")
    except ValueError:
        raise
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"The pretrained weights of teacher {name!r} are not to be had ({reason}): give Teacher(checkpoint=...)."
        ) from error


def load_network(path: str, what: str) -> ClassificationModule:
    """The module of a Lightning checkpoint.

    Raises:
        ValueError: If it is no checkpoint of a ``ClassificationModule`` with a named network.
    """
    try:
        return ClassificationModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{what}={path!r} is no checkpoint of a ClassificationModule with a timm name ({reason}): load the network "
            "yourself and pass it."
        ) from error


def _config(network: nn.Module | None) -> dict[str, Any] | None:
    """What timm knows of a network's images; ``None`` where it knows nothing."""
    known = network is not None and getattr(network, "pretrained_cfg", None)
    return resolve_model_data_config(network) if known else None


def _conversion(
    teacher: Teacher, theirs: dict[str, Any] | None, images: Normalization | None, ours: dict[str, Any] | None
) -> Conversion | None:
    have = images or _normalization(ours)
    want = teacher.normalization or _normalization(theirs)
    if teacher.normalization is not None and have is None:
        raise ValueError(
            "Teacher(normalization=...) needs to know how the student's images are normalised: set the "
            "DistillationModule's normalization, too."
        )
    size = teacher.input_size
    if size is None and ours and theirs and ours["input_size"] != theirs["input_size"]:
        size = tuple(theirs["input_size"][1:])
    return Conversion(have, want, size) if (have and want and have != want) or size is not None else None


def _normalization(config: dict[str, Any] | None) -> Normalization | None:
    return Normalization(config["mean"], config["std"]) if config else None


def is_network(teacher: Taught) -> bool:
    """Whether a teacher is a network of the caller's, which plain data cannot say."""
    return isinstance(getattr(teacher, "model", None), nn.Module)


def as_teachers(teacher: Any) -> list[Taught]:
    """One or several teachers as specifications.

    Raises:
        ValueError: For what is no teacher.
    """
    if teacher is None:
        return []
    several = teacher if isinstance(teacher, (list, tuple)) else [teacher]
    return [_as_teacher(each) for each in several]


def _as_teacher(teacher: Any) -> Taught:
    if isinstance(teacher, Mapping):
        return Teacher(**teacher)
    if isinstance(teacher, Path):
        return Teacher(str(teacher))
    if isinstance(teacher, (str, nn.Module)):
        return Teacher(teacher)
    if not isinstance(teacher, (Teacher, MeanTeacher, Peer)):
        raise ValueError(f"teacher={teacher!r} is none: give a timm name, a network, an lc.Teacher, or a list of them.")
    return teacher
