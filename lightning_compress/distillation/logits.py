"""Distillation losses of logits: KD, DKD and DIST, and LogitMSE for outputs that are not of classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.distillation.loss import Combine, LogitLoss, check_not_negative, check_positive
from lightning_compress.functional import logit_losses


@dataclass(frozen=True)
class KD(LogitLoss):
    """Kullback-Leibler divergence between the softened class probabilities. Hinton et al. 2015 (arXiv:1503.02531).

    Args:
        temperature: Temperature that divides the logits; the loss is multiplied by its square.
        standardize: If True, the logits of each sample are first scaled to mean 0 and standard deviation 1, as in Sun
            et al. 2024 (arXiv:2403.01427).
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``temperature`` is not above zero, or ``weight`` is negative or not finite.

    >>> import torch
    >>> import lightning_compress as lc
    >>> student, teacher = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    >>> print(f"{lc.KD(temperature=2.0)(student, teacher, labels=None):.3f}")
    1.848
    """

    temperature: float = 4.0
    standardize: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "temperature", self.temperature)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return logit_losses.kd(*_prepare(self, student, teacher, self.standardize), self.temperature)


@dataclass(frozen=True)
class DKD(LogitLoss):
    """Decoupled KD: divergence of the target class against all others, and divergence among the others.

    Zhao et al. 2022 (arXiv:2203.08679). Needs labels.

    Args:
        alpha: Factor of the target-class term.
        beta: Factor of the non-target-class term.
        temperature: Temperature that divides the logits; the loss is multiplied by its square.
        standardize: If True, the logits of each sample are first scaled to mean 0 and standard deviation 1.
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``temperature`` is not above zero, another number is negative or not finite, or, when called,
            there are no labels.

    >>> import torch
    >>> import lightning_compress as lc
    >>> student, teacher = torch.tensor([[2.0, 0.0, 1.0]]), torch.tensor([[3.0, 1.0, 0.0]])
    >>> print(f"{lc.DKD(temperature=1.0)(student, teacher, labels=torch.tensor([0])):.3f}")
    3.778
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
            raise ValueError("DKD needs labels, to separate the target class from the others: use KD or DIST instead.")
        logits = _prepare(self, student, teacher, self.standardize)
        return logit_losses.dkd(*logits, labels, self.alpha, self.beta, self.temperature)


@dataclass(frozen=True)
class DIST(LogitLoss):
    """One minus the Pearson correlation of class probabilities, over classes and over the samples of the batch.

    Huang et al. 2022 (arXiv:2205.10536).

    Args:
        beta: Factor of the inter-class term, the correlation over classes for each sample.
        gamma: Factor of the intra-class term, the correlation over samples for each class.
        temperature: Temperature that divides the logits; the loss is multiplied by its square.
        standardize: If True, the logits of each sample are first scaled to mean 0 and standard deviation 1.
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``temperature`` is not above zero, or another number is negative or not finite.

    >>> import torch
    >>> import lightning_compress as lc
    >>> student, teacher = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 2.0], [1.0, 0.0]])
    >>> print(f"{lc.DIST()(student, teacher, labels=None):.3f}")
    4.000
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
        logits = _prepare(self, student, teacher, self.standardize)
        return logit_losses.dist(*logits, self.beta, self.gamma, self.temperature)


@dataclass(frozen=True)
class LogitMSE(LogitLoss):
    """Mean squared error between logits, or between the outputs of a regression. Ba and Caruana 2014 (arXiv:1312.6184).

    Of several teachers, the mean of their outputs is compared. Classes at ``-inf`` are left out.

    Args:
        weight: Factor of this loss in the total loss, or a :class:`Ramp`.

    Raises:
        ValueError: If ``weight`` is negative or not finite.

    >>> import torch
    >>> import lightning_compress as lc
    >>> lc.LogitMSE()(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0], [4.0]]), labels=None)
    tensor(2.)
    """

    @override
    def target(self, teachers: Sequence[Tensor], labels: Tensor | None, combine: Combine) -> Tensor:
        return torch.stack(list(teachers)).mean(0)

    @override
    def __call__(self, student: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        return logit_losses.logit_mse(student, teacher)


def _prepare(loss: LogitLoss, student: Tensor, teacher: Tensor, standardize: bool) -> tuple[Tensor, Tensor]:
    if student.shape[1:] == (1,):
        raise ValueError(
            f"{type(loss).__name__} compares probabilities of classes, but the outputs have one class, of probability "
            "1 in both networks: use losses={'mse': lc.LogitMSE()} for a regression or a binary logit, or feature "
            "losses."
        )
    # First, so that classes masked in either output do not enter the mean and standard deviation.
    student, teacher = logit_losses.exclude_jointly(student, teacher)
    if not standardize:
        return student, teacher
    return logit_losses.standardize(student), logit_losses.standardize(teacher)
