"""Whom to learn from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lightning_compress.distillation.image_conversion import Normalization


@dataclass(frozen=True)
class Teacher:
    """A trained network to learn from. It is never trained, saved, or counted with the student.

    Args:
        model: A timm name; a checkpoint (``.ckpt``) of a ``ClassificationModule``; or a network of your own, which is
            copied.
        checkpoint: File with the weights of a named network, ``.safetensors``, ``.pt``, ``.pth`` or ``.ckpt``. Without
            one timm's pretrained weights are loaded.
        num_classes: Classes of a named network; by default those of the student.
        model_kwargs: Further arguments of a named network.
        precision: ``"bf16"`` or ``"fp16"`` to compute in it; by default in the network's own type.
        compile: Whether ``torch.compile`` is applied.
        normalization: How it wants its images normalised; by default as its timm configuration says.
        input_size: Height and width of the images it wants; by default, where timm's configurations of student and
            teacher differ in it, the teacher's.

    Raises:
        ValueError: For a precision that is unknown, weights or arguments for a network that is built already, and a
            size below 1.
    """

    model: str | nn.Module
    checkpoint: str | None = None
    num_classes: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    precision: Literal["bf16", "fp16"] | None = None
    compile: bool = False
    normalization: Normalization | None = None
    input_size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.precision not in (None, "bf16", "fp16"):
            raise ValueError(f"Teacher(precision={self.precision!r}) must be 'bf16', 'fp16' or None.")
        for name in ("model", "checkpoint"):
            if isinstance(value := getattr(self, name), Path):
                object.__setattr__(self, name, str(value))
        built = isinstance(self.model, nn.Module) or self.model.endswith(".ckpt")
        if built and (self.checkpoint or self.model_kwargs or self.num_classes):
            raise ValueError(
                "Teacher: a network or a .ckpt file has its weights and arguments already; "
                "leave out checkpoint, num_classes and model_kwargs."
            )
        if self.input_size is not None:
            object.__setattr__(self, "input_size", tuple(self.input_size))
            if len(self.input_size) != 2 or min(self.input_size) < 1:
                raise ValueError(
                    f"Teacher(input_size={self.input_size}) must be a height and a width, such as (224, 224)."
                )


@dataclass(frozen=True)
class MeanTeacher:
    """The exponential moving average of the student's own weights. Tarvainen and Valpola 2017 (arXiv:1703.01780).

    A checkpoint holds it, since nothing else could restore it.

    Args:
        decay: Part of the average that stays in a step, in (0, 1).

    Raises:
        ValueError: For any other decay.
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"MeanTeacher(decay={self.decay}) must lie between 0 and 1, such as 0.999.")


@dataclass(frozen=True)
class Peer:
    """A network that learns along, from the student as the student from it. Zhang et al. 2018 (arXiv:1706.00384).

    It has an optimizer of the student's kind, at the student's learning rate, and is not compressed with it. A
    checkpoint holds it.

    Args:
        model: A timm name, or a network of your own, which is copied.
        num_classes: Classes of a named network; by default those of the student.
        model_kwargs: Further arguments of a named network.
    """

    model: str | nn.Module
    num_classes: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
