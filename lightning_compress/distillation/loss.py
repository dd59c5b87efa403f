"""Base classes of distillation losses, and checks of their arguments."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lightning_compress.distillation.adapters import IdentityAdapter, check_feature_shapes
from lightning_compress.distillation.ramp import Ramp

Combine = Callable[[Sequence[Tensor], Tensor | None], Tensor]


@dataclass(frozen=True)
class LogitLoss(ABC):
    """Base class of losses between the logits of student and teacher.

    Args:
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``weight`` is negative or not finite.
    """

    weight: float | Ramp = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        check_weight(self, self.weight)

    def target(self, teachers: Sequence[Tensor], labels: Tensor | None, combine: Combine) -> Tensor:
        """Combine the logits of several teachers; by default with the function that averages their probabilities.

        Args:
            teachers: Logits ``(N, C)`` of each teacher.
            labels: Classes ``(N,)``, or probabilities ``(N, C)``.
            combine: Function from ``teachers`` and ``labels`` to combined logits ``(N, C)``.
        """
        return combine(teachers, labels)

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the loss of a batch, without its weight.

        Args:
            student: Logits ``(N, C)``; of tokens or pixels, one row for each.
            teacher: Logits ``(N, C)``, which receive no gradient.
            labels: Classes ``(N,)``, or probabilities ``(N, C)``, of which the largest counts.

        Returns:
            Scalar in float32, or float64 if the logits are.
        """


@dataclass(frozen=True)
class FeatureLoss(ABC):
    """Base class of losses between features of student and teacher.

    Args:
        layers: Pairs of module names ``(student, teacher)``; the outputs of each pair are compared.
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``layers`` are not pairs of names, or ``weight`` is negative or not finite.
    """

    layers: tuple[tuple[str, str], ...]
    weight: float | Ramp = field(default=1.0, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _as_pairs(self, self.layers))
        check_weight(self, self.weight)

    def adapter(self, student: torch.Size, teacher: torch.Size) -> nn.Module:
        """Build the adapter of one pair of layers; by default one without parameters.

        Args:
            student: Shape of the student's feature, batch dimension included.
            teacher: Shape of the teacher's feature.

        Returns:
            Module that maps the two features to the two tensors that the loss compares.

        Raises:
            ValueError: If features of these shapes cannot be compared.
        """
        check_feature_shapes(student, teacher)
        return IdentityAdapter()

    @abstractmethod
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """Compute the loss of one pair of layers, without its weight.

        Args:
            student: First output of the pair's adapter.
            teacher: Second output of the pair's adapter.
            labels: Classes ``(N,)``, or probabilities ``(N, C)``, of which the largest counts.

        Returns:
            Scalar in float32, or float64 if the features are.
        """


def check_weight(loss: object, weight: float | Ramp) -> None:
    """Check that a weight is a :class:`Ramp`, or finite and not negative.

    Raises:
        ValueError: If it is neither.
    """
    if not isinstance(weight, Ramp):
        check_not_negative(loss, "weight", weight)


def check_not_negative(loss: object, name: str, value: float) -> None:
    """Check that a factor is finite and not negative.

    Raises:
        ValueError: If it is not.
    """
    if not (_is_finite_number(value) and value >= 0):
        raise ValueError(f"{type(loss).__name__}({name}={value!r}) must be a finite number and not negative.")


def check_positive(loss: object, name: str, value: float) -> None:
    """Check that a divisor is finite and above zero.

    Raises:
        ValueError: If it is not.
    """
    if not (_is_finite_number(value) and value > 0):
        raise ValueError(f"{type(loss).__name__}({name}={value!r}) must be a finite number above zero.")


def _is_finite_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _as_pairs(loss: object, layers: object) -> tuple[tuple[str, str], ...]:
    # YAML has lists only; tuples make the specification hashable.
    entries = layers if isinstance(layers, (list, tuple)) else ()
    pairs = tuple(tuple(pair) if isinstance(pair, list) else pair for pair in entries)
    if not pairs or not all(_is_pair(pair) for pair in pairs):
        raise ValueError(
            f"{type(loss).__name__}(layers={layers!r}) must be pairs of module names (student, teacher): write "
            "layers=(('layer3', 'layer4'),)."
        )
    if len(set(pairs)) < len(pairs):
        raise ValueError(
            f"{type(loss).__name__}(layers={layers!r}) contains a pair twice: write it once and raise weight."
        )
    return pairs


def _is_pair(pair: object) -> bool:
    return isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(name, str) and name for name in pair)
