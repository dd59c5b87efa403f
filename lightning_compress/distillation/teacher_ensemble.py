"""All the teachers of a student."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.image_conversion import Normalization
from lightning_compress.distillation.students import num_classes_of
from lightning_compress.distillation.teacher import MeanTeacher, Teacher
from lightning_compress.distillation.teacher_loading import Taught, build_teacher, is_network


class TeacherEnsemble:
    """Teachers as they are specified, and built when they are first needed: to load a student needs none.

    Args:
        teachers: The specifications.
        student: The student's module.
        network: Its network.
        layers: Names of modules of the first teacher whose outputs are wanted.
        images: How the student's images are normalised, if that is known.
        cache: Directory in which logits are kept, if they are.

    Raises:
        ValueError: If a teacher that is a network already does not fit.
    """

    def __init__(
        self,
        teachers: Sequence[Taught],
        *,
        student: nn.Module,
        network: nn.Module,
        layers: Sequence[str],
        images: Normalization | None,
        cache: Path | None,
    ) -> None:
        self._teachers: list[Taught | FrozenNetwork] = list(teachers)
        self._student, self._network = student, network
        self._layers, self._images, self._cache = layers, images, cache
        for index, each in enumerate(teachers):
            # Nothing to load: a network of the caller's is copied before it changes.
            if isinstance(each, Teacher) and is_network(each):
                self._teachers[index] = self._build(index, each)

    @property
    def built(self) -> list[FrozenNetwork]:
        """Those that are built."""
        return [teacher for teacher in self._teachers if isinstance(teacher, FrozenNetwork)]

    def ready(self) -> list[FrozenNetwork]:
        """All of them, built.

        Raises:
            ValueError: If there is none, or one cannot be built.
        """
        if not self._teachers:
            raise ValueError("This DistillationModule has no teacher: pass teacher=..., which checkpoints do not hold.")
        for index, each in enumerate(self._teachers):
            if not isinstance(each, FrozenNetwork):
                self._teachers[index] = self._build(index, each)
        return self.built

    def step(self, optimizer: Optimizer, *_: Any) -> None:
        """Lets those that learn do so, after a step of the student's optimizer."""
        for teacher in self.built:
            teacher.step(self._network, optimizer)

    def record(self) -> dict[str, Any]:
        """Who they are, and what those that learn have learned, for a checkpoint."""
        return {
            "teachers": [teacher.identity for teacher in self.built],
            "states": [teacher.state() for teacher in self.built],
        }

    def restore(self, record: Mapping[str, Any]) -> None:
        """Goes on from a record.

        Raises:
            ValueError: If it is of other teachers.
        """
        for theirs, state, teacher in zip(record["teachers"], record["states"], self.built, strict=False):
            ours = teacher.identity
            if theirs != ours:
                raise ValueError(
                    f"The checkpoint's student learned from {theirs['name']!r} ({theirs['hash'][:8]}), and the teacher "
                    f"here is {ours['name']!r} ({ours['hash'][:8]}): give it the same weights, or start a new run from "
                    "the checkpoint's weights alone."
                )
            teacher.restore(state)

    def _build(self, index: int, teacher: Taught) -> FrozenNetwork:
        student = self._network
        if isinstance(teacher, MeanTeacher):
            # Without the module around it, to which it logs.
            outer = getattr(vars(student).get("log"), "outer", None)
            student = copy.deepcopy(student, {id(outer): nn.Module()} if outer is not None else {})
        return build_teacher(
            teacher,
            student=student,
            num_classes=num_classes_of(self._student),
            taps=() if index else self._layers,
            images=self._images,
            cache=self._cache,
        )
