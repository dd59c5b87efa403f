"""Logit distillation losses: KD, DKD, DIST and mean squared error, and logit standardization.

All reductions run in float32 (float64 inputs stay float64), in log space and outside of autocast. A class with a logit
of ``-inf`` in either network is excluded from both: the other probabilities are renormalized, and its gradient is
exactly zero. The teacher's logits are detached.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.functional.dtypes import class_indices, promote_dtypes

# Smaller standard deviations are replaced by this: gradients grow as their inverse and would overflow fp16.
_MIN_STD = 1e-3


def exclude_jointly(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Set a class to ``-inf`` in both logits (N, C) where either network excludes it.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C); detached.

    Returns:
        Both logits in their common dtype, at least float32.

    Raises:
        ValueError: If the shapes differ or are not (N, C).

    >>> student, teacher = exclude_jointly(torch.tensor([[1.0, -torch.inf]]), torch.tensor([[2.0, 3.0]]))
    >>> teacher.tolist()
    [[2.0, -inf]]
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"Logits of student and teacher must both be of shape (N, C), got {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}: give both networks a head with the same classes."
        )
    student, teacher = promote_dtypes(student, teacher.detach())
    excluded = student.isneginf() | teacher.isneginf()
    return student.masked_fill(excluded, -torch.inf), teacher.masked_fill(excluded, -torch.inf)


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """KL divergence of the student's softened probabilities from the teacher's. Hinton et al. 2015 (arXiv:1503.02531).

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        temperature: Divisor of the logits.

    Returns:
        ``KL(teacher || student)``, the mean over samples, times ``temperature ** 2``.

    Raises:
        ValueError: If the shapes differ or are not (N, C).

    >>> kd(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 800.0]]), temperature=1.0)
    tensor(0.6931)
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = exclude_jointly(student, teacher)
        # Gradients scale with 1 / temperature^2; the factor keeps their size comparable to the cross entropy's.
        return temperature**2 * _divergence(student, teacher, student.isneginf(), temperature)


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """Decoupled knowledge distillation. Zhao et al. 2022 (arXiv:2203.08679).

    Splits the KL divergence into target against non-target probability (TCKD) and the distribution among the
    non-target classes (NCKD). TCKD is zero where the target class is excluded or is the only one left.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        labels: Target class indices (N,), or class probabilities (N, C), of which the argmax is taken.
        alpha: Weight of the target-class term (TCKD).
        beta: Weight of the non-target-class term (NCKD).
        temperature: Divisor of the logits; the loss is multiplied by its square.

    Raises:
        ValueError: If the shapes differ or are not (N, C).

    >>> logits = torch.tensor([[3.0, 1.0, 0.0]])
    >>> bool(dkd(logits, logits, torch.tensor([0])).abs() < 1e-6)
    True
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = exclude_jointly(student, teacher)
        excluded, target = student.isneginf(), class_indices(labels).unsqueeze(1)
        # Non-target probabilities are those of a softmax without the target class.
        non_target = excluded.scatter(1, target, True)
        target_excluded = excluded.gather(1, target)
        student_binary, teacher_binary = (
            _target_log_probabilities(logits, excluded, non_target, target, target_excluded, temperature)
            for logits in (student, teacher)
        )
        tckd = _mean_divergence(student_binary, teacher_binary)
        return temperature**2 * (alpha * tckd + beta * _divergence(student, teacher, non_target, temperature))


def dist(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> Tensor:
    """One minus Pearson correlation between probabilities of student and teacher. Huang et al. 2022 (arXiv:2205.10536).

    Rows (samples) or columns (classes) in which the teacher is constant are left out of the means; a batch of one
    sample has no intra-class term. Where only the student is constant the correlation is zero. Probabilities count as
    constant if their deviations from the mean, divided by the largest probability, have a norm below 0.001.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        beta: Weight of the inter-class term: correlation along each row, mean over samples.
        gamma: Weight of the intra-class term: correlation along each column, mean over classes.
        temperature: Divisor of the logits; the loss is multiplied by its square.

    Raises:
        ValueError: If the shapes differ or are not (N, C).

    >>> logits = torch.tensor([[3.0, 1.0, 0.0], [0.0, 2.0, 1.0]])
    >>> bool(dist(logits, logits).abs() < 1e-5)
    True
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = exclude_jointly(student, teacher)
        excluded = student.isneginf()
        student, teacher = (_log_softmax(logits, excluded, temperature) for logits in (student, teacher))
        inter = _correlation_loss(student, teacher, excluded, dim=1)
        intra = _correlation_loss(student, teacher, excluded, dim=0)
        return temperature**2 * (beta * inter + gamma * intra)


def logit_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared error between logits. Ba and Caruana 2014 (arXiv:1312.6184).

    Args:
        student: Logits (N, C), or outputs of a regression.
        teacher: Logits of the same shape.

    Returns:
        Mean over samples and over classes that are not excluded.

    Raises:
        ValueError: If the shapes differ or are not (N, C).

    >>> logit_mse(torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, -torch.inf]]))
    tensor(4.)
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = exclude_jointly(student, teacher)
        included = ~student.isneginf()
        difference = student.masked_fill(~included, 0.0) - teacher.masked_fill(~included, 0.0)
        return difference.square().sum() / included.sum().clamp_min(1)


def standardize(logits: Tensor) -> Tensor:
    """Standardize logits to mean 0 and standard deviation 1 per sample. Sun et al. 2024 (arXiv:2403.01427).

    The standard deviation is the biased estimate over classes; below 0.001 it is replaced by 0.001, so that constant
    logits become zeros. Classes at ``-inf`` stay there and do not count: to exclude the same ones in both networks,
    call :func:`exclude_jointly` first.

    Args:
        logits: Logits (N, C).

    >>> standardize(torch.tensor([[1.0, 3.0, -torch.inf], [5.0, 5.0, 5.0]])).tolist()
    [[-1.0, 1.0, -inf], [0.0, 0.0, 0.0]]
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, _ = promote_dtypes(logits, logits)
        excluded = logits.isneginf()
        centered = _center(_subtract_max(logits, excluded, 1), excluded, 1)
        variance = centered.square().sum(dim=1, keepdim=True) / _num_included(excluded, 1)
        return (centered / variance.clamp_min(_MIN_STD**2).sqrt()).masked_fill(excluded, -torch.inf)


# In the helpers below excluded entries are zero, not -inf, so that neither a value nor a gradient becomes NaN on the
# way (0 * inf, or inf - inf), not even one that a later mask would remove.


def _subtract_max(values: Tensor, excluded: Tensor, dim: int) -> Tensor:
    """Subtract the maximum along a dimension; zero where excluded."""
    # The maximum is detached: all that follows is invariant to the shift.
    kept = values.masked_fill(excluded, torch.finfo(values.dtype).min)
    return (kept - kept.detach().amax(dim, keepdim=True)).masked_fill(excluded, 0.0)


def _mask_to_neginf(values: Tensor, excluded: Tensor) -> Tensor:
    """Set excluded values to ``-inf``, except in samples without any other class."""
    # The softmax over a row of -inf is NaN.
    return values.masked_fill(excluded & ~excluded.all(dim=1, keepdim=True), -torch.inf)


def _log_softmax(logits: Tensor, excluded: Tensor, temperature: float) -> Tensor:
    """Log probabilities; zero where excluded."""
    # Shifted before the division: large logits at a low temperature would lose the digits in which they differ.
    scaled = _subtract_max(logits, excluded, 1) / temperature
    return _mask_to_neginf(scaled, excluded).log_softmax(dim=1).masked_fill(excluded, 0.0)


def _divergence(student: Tensor, teacher: Tensor, excluded: Tensor, temperature: float) -> Tensor:
    student, teacher = (_log_softmax(logits, excluded, temperature) for logits in (student, teacher))
    return _mean_divergence(student, teacher)


def _mean_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL divergence of log probabilities, mean over samples."""
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / max(len(student), 1)


def _target_log_probabilities(
    logits: Tensor, excluded: Tensor, non_target: Tensor, target: Tensor, target_excluded: Tensor, temperature: float
) -> Tensor:
    """Log probabilities (N, 2) of the target class and of all others; both 1/2 where the target class is excluded."""
    scaled = _subtract_max(logits, excluded, 1) / temperature
    # Where the target class is the only one left, rest is the log-sum-exp of zeros in both networks alike: the
    # divergence vanishes.
    rest = _mask_to_neginf(scaled, non_target).logsumexp(dim=1, keepdim=True)
    # log p = logsigmoid(margin) keeps both tails: log(1 - p) would lose the smaller probability.
    margin = (scaled.gather(1, target) - rest).masked_fill(target_excluded, 0.0)
    return F.logsigmoid(torch.cat([margin, -margin], dim=1))


def _num_included(excluded: Tensor, dim: int) -> Tensor:
    return (~excluded).sum(dim, keepdim=True).clamp_min(1)


def _center(values: Tensor, excluded: Tensor, dim: int) -> Tensor:
    """Subtract the mean over entries that are not excluded; ``values`` are zero where excluded."""
    return (values - values.sum(dim, keepdim=True) / _num_included(excluded, dim)).masked_fill(excluded, 0.0)


def _correlation_loss(student: Tensor, teacher: Tensor, excluded: Tensor, dim: int) -> Tensor:
    """One minus Pearson correlation along a dimension, from log probabilities; mean over where the teacher varies."""
    # Correlation is invariant to scale and shift, so p / max(p) - 1 = expm1(log p - max log p) stands in for p. It
    # keeps probabilities too small for float32, and differences that are small against the probabilities.
    student, teacher = (_center(_subtract_max(x, excluded, dim).expm1(), excluded, dim) for x in (student, teacher))
    squares = [x.square().sum(dim, keepdim=True) for x in (student, teacher)]
    student, teacher = (
        x / square.clamp_min(_MIN_STD**2).sqrt() for x, square in zip((student, teacher), squares, strict=True)
    )
    varies = squares[1].squeeze(dim) > _MIN_STD**2
    return (1 - (student * teacher).sum(dim)).masked_fill(~varies, 0.0).sum() / varies.sum().clamp_min(1)
