"""The teachers of one student: built on first use, updated with its steps, and restored from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.image_conversion import Normalization
from lightning_compress.distillation.students import infer_num_classes
from lightning_compress.distillation.teacher import MeanTeacher, Teacher
from lightning_compress.distillation.teacher_loading import TeacherSpec, build_teacher, has_network
from lightning_compress.module_copies import copy_module


class TeacherEnsemble:
    """Teachers of one student, built from their specifications on first use.

    Building is deferred so that a student can be loaded and evaluated without its teachers.

    Args:
        teachers: Specifications of the teachers.
        student: Module of the student.
        network: Network of the student.
        layers: Names of the modules of the first teacher to record.
        student_normalization: Normalization of the student's images, or ``None`` for that of its timm configuration.
        cache: Directory of the cached logits, or ``None``.

    Raises:
        ValueError: If a teacher given as a network does not fit.
    """

    def __init__(
        self,
        teachers: Sequence[TeacherSpec],
        *,
        student: nn.Module,
        network: nn.Module,
        layers: Sequence[str],
        student_normalization: Normalization | None,
        cache: Path | None,
    ) -> None:
        self._teachers: list[TeacherSpec | FrozenNetwork] = list(teachers)
        self._student, self._network = student, network
        self._layers, self._cache = layers, cache
        self._student_normalization = student_normalization
        for index, each in enumerate(teachers):
            # Copied now, as the caller may train its network further; there is nothing to load.
            if isinstance(each, Teacher) and has_network(each):
                self._teachers[index] = self._build(index, each)

    @property
    def built(self) -> list[FrozenNetwork]:
        """The teachers that are built already."""
        return [teacher for teacher in self._teachers if isinstance(teacher, FrozenNetwork)]

    def build(self) -> list[FrozenNetwork]:
        """Build the teachers that are not built yet, and return all of them.

        Raises:
            ValueError: If there are no teachers, or one cannot be built.
        """
        if not self._teachers:
            raise ValueError(
                "This DistillationModule has no teacher: pass teacher=..., which is not stored in checkpoints."
            )
        for index, each in enumerate(self._teachers):
            if not isinstance(each, FrozenNetwork):
                self._teachers[index] = self._build(index, each)
        return self.built

    def step(self, optimizer: Optimizer, *_: Any) -> None:
        """Update the teachers after a step of the student's optimizer, as its step post-hook."""
        for teacher in self.built:
            teacher.step(self._network, optimizer)

    def state_dict(self) -> dict[str, Any]:
        """Return the identities and states of the teachers for a checkpoint."""
        return {
            "teachers": [teacher.identity for teacher in self.built],
            "states": [teacher.state_dict() for teacher in self.built],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the teachers from a checkpoint.

        Raises:
            ValueError: If the checkpoint was written with other teachers.
        """
        # Not strict: a module without teachers may load a checkpoint for evaluation.
        for stored, teacher_state, teacher in zip(state["teachers"], state["states"], self.built, strict=False):
            identity = teacher.identity
            if stored != identity:
                raise ValueError(
                    f"The checkpoint's student was distilled from {stored['name']!r} ({stored['hash'][:8]}), but the "
                    f"teacher here is {identity['name']!r} ({identity['hash'][:8]}): give it the same weights, or "
                    "start a new run from the checkpoint's weights alone."
                )
            teacher.load_state_dict(teacher_state)

    def _build(self, index: int, teacher: TeacherSpec) -> FrozenNetwork:
        student = self._network
        if isinstance(teacher, MeanTeacher):
            # The student logs through the DistillationModule: without this, the copy would include that module, too.
            outer = getattr(vars(student).get("log"), "outer", None)
            student = copy_module(student, {id(outer): nn.Module()} if outer is not None else {})
        return build_teacher(
            teacher,
            student=student,
            num_classes=infer_num_classes(self._student),
            layers=() if index else self._layers,
            student_normalization=self._student_normalization,
            cache=self._cache,
        )
