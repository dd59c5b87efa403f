"""Losses of logits."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lightning_compress.distillation.loss import LogitLoss, check_not_negative, check_positive
from lightning_compress.functional import logit_losses


@dataclass(frozen=True)
class KD(LogitLoss):
    """Divergence of softened probabilities. Hinton et al. 2015 (arXiv:1503.02531).

    Args:
        temperature: What logits are divided by; the loss is multiplied by its square.
        standardize: Whether each sample's logits are first brought to mean 0 and standard deviation 1, as in Sun et
            al. 2024 (arXiv:2403.01427); so are they for the other losses.
        weight: What the loss is multiplied by where losses are added up.

    Raises:
        ValueError: If ``temperature`` is not above zero, or ``weight`` is negative.
    """

    temperature: float = 4.0
    standardize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature", self.temperature)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return logit_losses.kd(*_compared(student, teacher, self.standardize), self.temperature)


@dataclass(frozen=True)
class DKD(LogitLoss):
    """Divergences of the target class against the rest, and within the rest. Zhao et al. 2022 (arXiv:2203.08679).

    Args:
        alpha: Factor of the first.
        beta: Factor of the second.
        temperature: What logits are divided by; the loss is multiplied by its square.
        standardize: Whether each sample's logits are first brought to mean 0 and standard deviation 1.
        weight: What the loss is multiplied by where losses are added up.

    Raises:
        ValueError: If ``temperature`` is not above zero, or another number is negative.
    """

    alpha: float = 1.0
    beta: float = 8.0
    temperature: float = 4.0
    standardize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "alpha", self.alpha)
        check_not_negative(self, "beta", self.beta)
        check_positive(self, "temperature", self.temperature)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        if labels is None:
            raise ValueError("DKD needs labels, to tell the target class from the rest: use KD or DIST without them.")
        compared = _compared(student, teacher, self.standardize)
        return logit_losses.dkd(*compared, labels, self.alpha, self.beta, self.temperature)


@dataclass(frozen=True)
class DIST(LogitLoss):
    """Correlations between classes and within them. Huang et al. 2022 (arXiv:2205.10536).

    Args:
        beta: Factor of the relations between classes.
        gamma: Factor of the relations within classes.
        temperature: What logits are divided by; the loss is multiplied by its square.
        standardize: Whether each sample's logits are first brought to mean 0 and standard deviation 1.
        weight: What the loss is multiplied by where losses are added up.

    Raises:
        ValueError: If ``temperature`` is not above zero, or another number is negative.
    """

    beta: float = 1.0
    gamma: float = 1.0
    temperature: float = 1.0
    standardize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_not_negative(self, "beta", self.beta)
        check_not_negative(self, "gamma", self.gamma)
        check_positive(self, "temperature", self.temperature)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        compared = _compared(student, teacher, self.standardize)
        return logit_losses.dist(*compared, self.beta, self.gamma, self.temperature)


def _compared(student: Tensor, teacher: Tensor, standardize: bool) -> tuple[Tensor, Tensor]:
    student, teacher = logit_losses.common(student, teacher)
    if not standardize:
        return student, teacher
    return logit_losses.standardize(student), logit_losses.standardize(teacher)
