"""Specifications of teachers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import nn

from lightning_compress.distillation.image_conversion import Normalization


@dataclass(frozen=True)
class Teacher:
    """A pretrained, frozen teacher. It is not trained, not saved in checkpoints, and not counted with the student.

    Under ``ModelParallelStrategy`` each rank has the whole teacher, unless it is a LightningModule that shards its
    layers in ``configure_model``.

    Args:
        model: A timm name, a checkpoint (``.ckpt``) of a :class:`ClassificationModule`, or a network, which is copied.
        checkpoint: File with the weights of a timm network: ``.safetensors``, ``.pt``, ``.pth`` or ``.ckpt``. By
            default timm's pretrained weights are loaded.
        num_classes: Number of classes of a timm network; by default that of the student.
        model_kwargs: Further arguments of a timm network.
        precision: ``"bf16"`` or ``"fp16"`` to compute in that dtype; by default the network's own.
        compile: If True, the network is compiled with ``torch.compile``.
        normalization: Normalization of the teacher's input images; by default that of its timm configuration.
        input_size: Height and width of the teacher's input images. By default that of its timm configuration if the
            student's timm configuration has another, else that of the student's images.
        inputs: Function from the batch, as ``training_step`` gets it, to the teacher's arguments: a tensor, a tuple, a
            dict of keyword arguments, or a pair of a tuple and a dict. By default it gets those of the student.
        output: Name of the teacher's module that returns the logits, such as the classification head of a detector; by
            default the whole network.

    Raises:
        ValueError: For an unknown precision, weights or arguments for a network that is already built, or a size below
            1.

    >>> import lightning_compress as lc
    >>> teacher = lc.Teacher("resnet56_cifar", checkpoint="resnet56.safetensors", num_classes=10, precision="bf16")
    >>> teacher.model, teacher.precision
    ('resnet56_cifar', 'bf16')
    """

    model: str | nn.Module
    checkpoint: str | None = None
    num_classes: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    precision: Literal["bf16", "fp16"] | None = None
    compile: bool = False
    normalization: Normalization | None = None
    input_size: tuple[int, int] | None = None
    inputs: Callable[[Any], Any] | None = None
    output: str | None = None

    def __post_init__(self) -> None:
        if self.precision not in (None, "bf16", "fp16"):
            raise ValueError(f"Teacher(precision={self.precision!r}) must be 'bf16', 'fp16' or None.")
        for name in ("model", "checkpoint"):
            if isinstance(value := getattr(self, name), Path):
                object.__setattr__(self, name, str(value))
        is_built = isinstance(self.model, nn.Module) or self.model.endswith(".ckpt")
        if is_built and (self.checkpoint or self.model_kwargs or self.num_classes):
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
    """Exponential moving average of the student's own weights. Tarvainen and Valpola 2017 (arXiv:1703.01780).

    The decay is smaller in the first steps: ``min(decay, (1 + n) / (10 + n))`` in step ``n``. Checkpoints contain the
    average.

    Args:
        decay: Decay rate of the average, in (0, 1).

    Raises:
        ValueError: If ``decay`` is not in (0, 1).

    >>> import lightning_compress as lc
    >>> student = lc.ClassificationModule("lenet300_100", 10)
    >>> module = lc.DistillationModule(student, lc.MeanTeacher(decay=0.99))
    >>> type(module.teacher).__name__, module.teacher.training
    ('ClassificationModule', False)
    """

    decay: float = 0.999

    def __post_init__(self) -> None:
        if not 0 < self.decay < 1:
            raise ValueError(f"MeanTeacher(decay={self.decay}) must lie between 0 and 1, such as 0.999.")


@dataclass(frozen=True)
class Peer:
    """A teacher trained together with the student, each on the other's logits. Zhang et al. 2018 (arXiv:1706.00384).

    It has its own optimizer of the student's class and learning rate, and is not compressed. Checkpoints contain it.

    Args:
        model: A timm name, or a network, which is copied.
        num_classes: Number of classes of a timm network; by default that of the student.
        model_kwargs: Further arguments of a timm network.
        inputs: Function from the batch to its arguments, as of :class:`Teacher`.

    >>> import lightning_compress as lc
    >>> student = lc.ClassificationModule("lenet300_100", 10)
    >>> module = lc.DistillationModule(student, lc.Peer("lenet5"))
    >>> type(module.teacher).__name__
    'LeNet5'
    """

    model: str | nn.Module
    num_classes: int | None = None
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    inputs: Callable[[Any], Any] | None = None
