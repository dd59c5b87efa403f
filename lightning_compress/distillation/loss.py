"""What a distillation loss is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_compress.distillation.adapters import AsTheyAre, check_features
from lightning_compress.distillation.ramp import Ramp


@dataclass(frozen=True)
class LogitLoss(ABC):
    """How far the student's logits are from the teacher's.

    Args:
        weight: What the loss is multiplied by where losses are added up.

    Raises:
        ValueError: If ``weight`` is negative or not finite.
    """

    weight: float | Ramp = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        check_weight(self, self.weight)

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """The loss, not weighted: a scalar in float32, or float64 if logits are.

        Args:
            student: Logits (N, C).
            teacher: Logits (N, C); no gradient flows into them.
            labels: Classes (N,), or probabilities (N, C), of which the largest counts.
        """


@dataclass(frozen=True)
class FeatureLoss(ABC):
    """How far features of the student are from those of the teacher.

    Args:
        layers: Pairs of names of modules, the student's and the teacher's, whose outputs are compared.
        weight: What the loss is multiplied by where losses are added up.

    Raises:
        ValueError: If ``layers`` are no pairs of names, or ``weight`` is negative or not finite.
    """

    layers: tuple[tuple[str, str], ...]
    weight: float | Ramp = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _pairs(self, self.layers))
        check_weight(self, self.weight)

    def adapter(self, student: torch.Size, teacher: torch.Size) -> nn.Module:
        """What makes the features of one pair comparable; unless overridden, they are compared as they are.

        Args:
            student: Shape of the student's feature, with the batch.
            teacher: Shape of the teacher's.

        Returns:
            A module that takes the student's feature and the teacher's, and returns both ready to compare.

        Raises:
            ValueError: If features of such shapes cannot be compared.
        """
        check_features(student, teacher)
        return AsTheyAre()

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """The loss of one pair, not weighted: a scalar in float32, or float64 if features are.

        Args:
            student: What the pair's adapter has made of the student's feature.
            teacher: What it has made of the teacher's.
            labels: Classes (N,), or probabilities (N, C), of which the largest counts.
        """


def check_weight(loss: object, weight: float | Ramp) -> None:
    """Refuses a weight that is negative or not finite."""
    if not isinstance(weight, Ramp):
        check_not_negative(loss, "weight", weight)


def check_not_negative(loss: object, name: str, value: float) -> None:
    """Refuses a factor that is negative or not finite."""
    if not (_is_number(value) and value >= 0):
        raise ValueError(f"{type(loss).__name__}({name}={value!r}) must be a finite number and not negative.")


def check_positive(loss: object, name: str, value: float) -> None:
    """Refuses a divisor that is zero, negative or not finite."""
    if not (_is_number(value) and value > 0):
        raise ValueError(f"{type(loss).__name__}({name}={value!r}) must be a finite number above zero.")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pairs(loss: object, layers: object) -> tuple[tuple[str, str], ...]:
    given = layers if isinstance(layers, (list, tuple)) else ()
    pairs = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in given)
    if not pairs or not all(_is_pair(pair) for pair in pairs):
        raise ValueError(
            f"{type(loss).__name__}(layers={layers!r}) must be pairs of names of modules, the student's and the "
            "teacher's: write layers=(('layer3', 'layer4'),)."
        )
    if len(set(pairs)) < len(pairs):
        raise ValueError(f"{type(loss).__name__}(layers={layers!r}) has a pair twice: write it once and use weight.")
    return pairs


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(name, str) and name for name in pair)
