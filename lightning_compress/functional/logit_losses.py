"""How far a student's logits are from a teacher's.

Whatever comes in, sums are done in float32 (float64 stays), in log space and outside of autocast. A class whose logit
is ``-inf`` in either network is left out of both: the others are renormalised, and its gradient is exactly zero. No
gradient flows into the teacher.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_compress.functional.dtypes import classes, widened

_FLATTEST = 1e-3  # Smaller deviations are divided by this: gradients grow as the inverse, and would leave fp16.


def common(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both logits (N, C) in float32 or float64, with ``-inf`` wherever either has it; the teacher's without a graph.

    Raises:
        ValueError: If shapes differ or are not (N, C).
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ValueError(
            f"Logits of student and teacher must both be (samples, classes), not {tuple(student.shape)} and "
            f"{tuple(teacher.shape)}: give both networks a head with the same classes."
        )
    student, teacher = widened(student, teacher.detach())
    left_out = student.isneginf() | teacher.isneginf()
    return student.masked_fill(left_out, -torch.inf), teacher.masked_fill(left_out, -torch.inf)


def kd(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Divergence of the student's softened probabilities from the teacher's. Hinton et al. 2015 (arXiv:1503.02531).

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        temperature: What logits are divided by.

    Returns:
        ``KL(teacher || student)``, the mean over samples, times ``temperature ** 2``.

    Raises:
        ValueError: If shapes differ or are not (N, C).

    >>> kd(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 800.0]]), temperature=1.0)
    tensor(0.6931)
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = common(student, teacher)
        return temperature**2 * _divergence(student, teacher, student.isneginf(), temperature)


def dkd(
    student: Tensor, teacher: Tensor, labels: Tensor, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0
) -> Tensor:
    """The same, decoupled into the target class against the rest, and the rest. Zhao et al. 2022 (arXiv:2203.08679).

    Where the target class is left out, or is all that is left, the first part is zero.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        labels: Target classes (N,), or probabilities (N, C), of which the largest counts.
        alpha: Factor of the divergence of the probability of the target class.
        beta: Factor of the divergence of the probabilities of the others, given that it is one of them.
        temperature: What logits are divided by.

    Raises:
        ValueError: If shapes differ or are not (N, C).
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = common(student, teacher)
        left_out, target = student.isneginf(), classes(labels).unsqueeze(1)
        others = left_out.scatter(1, target, True)
        undecided = left_out.gather(1, target)
        of_student, of_teacher = (
            _target_log_probabilities(logits, left_out, others, target, undecided, temperature)
            for logits in (student, teacher)
        )
        of_target = _mean_divergence(of_student, of_teacher)
        return temperature**2 * (alpha * of_target + beta * _divergence(student, teacher, others, temperature))


def dist(student: Tensor, teacher: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0) -> Tensor:
    """How badly the student's probabilities correlate with the teacher's. Huang et al. 2022 (arXiv:2205.10536).

    Where the teacher's do not vary there is nothing to learn, and means are over the others: a batch of one sample has
    no relations within a class. Where the student's alone do not vary the correlation is zero. Probabilities count as
    constant if their deviations from the mean, over the largest of them, have a norm below 0.001.

    Args:
        student: Logits (N, C).
        teacher: Logits (N, C).
        beta: Factor of the relations between classes: one minus Pearson's correlation of rows, the mean over samples.
        gamma: Factor of the relations within a class: the same of columns, the mean over classes.
        temperature: What logits are divided by; the loss is multiplied by its square.

    Raises:
        ValueError: If shapes differ or are not (N, C).
    """
    with torch.autocast(student.device.type, enabled=False):
        student, teacher = common(student, teacher)
        left_out = student.isneginf()
        student, teacher = (_log_softmax(logits, left_out, temperature) for logits in (student, teacher))
        between, within = _unrelated(student, teacher, left_out, dim=1), _unrelated(student, teacher, left_out, dim=0)
        return temperature**2 * (beta * between + gamma * within)


def standardize(logits: Tensor) -> Tensor:
    """Logits with mean 0 and standard deviation 1 in each sample. Sun et al. 2024 (arXiv:2403.01427).

    The standard deviation is that of all classes (not the unbiased estimate); below 0.001 it counts as 0.001, so that
    constant logits become zeros. Classes at ``-inf`` stay there and do not count: to leave out the same ones in both
    networks, call ``common`` first.

    Args:
        logits: Of shape (N, C).

    >>> standardize(torch.tensor([[1.0, 3.0, -torch.inf], [5.0, 5.0, 5.0]])).tolist()
    [[-1.0, 1.0, -inf], [0.0, 0.0, 0.0]]
    """
    with torch.autocast(logits.device.type, enabled=False):
        logits, _ = widened(logits, logits)
        left_out = logits.isneginf()
        centred = _centred(_shifted(logits, left_out, 1), left_out, 1)
        variance = centred.square().sum(dim=1, keepdim=True) / _count(left_out, 1)
        return (centred / variance.clamp_min(_FLATTEST**2).sqrt()).masked_fill(left_out, -torch.inf)


def _shifted(values: Tensor, left_out: Tensor, dim: int) -> Tensor:
    """Values less the largest along a dimension; zero where left out. All that follows does not see the shift."""
    kept = values.masked_fill(left_out, torch.finfo(values.dtype).min)
    return (kept - kept.detach().amax(dim, keepdim=True)).masked_fill(left_out, 0.0)


def _hidden(values: Tensor, left_out: Tensor) -> Tensor:
    """Values with ``-inf`` where left out, but for samples of which nothing is left."""
    return values.masked_fill(left_out & ~left_out.all(dim=1, keepdim=True), -torch.inf)


def _log_softmax(logits: Tensor, left_out: Tensor, temperature: float) -> Tensor:
    """Log probabilities; zero where left out. Shifted before they are divided: large logits lose no digits."""
    scaled = _shifted(logits, left_out, 1) / temperature
    return _hidden(scaled, left_out).log_softmax(dim=1).masked_fill(left_out, 0.0)


def _divergence(student: Tensor, teacher: Tensor, left_out: Tensor, temperature: float) -> Tensor:
    student, teacher = (_log_softmax(logits, left_out, temperature) for logits in (student, teacher))
    return _mean_divergence(student, teacher)


def _mean_divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of log probabilities, the mean over samples."""
    return F.kl_div(student, teacher, reduction="sum", log_target=True) / max(len(student), 1)


def _target_log_probabilities(
    logits: Tensor, left_out: Tensor, others: Tensor, target: Tensor, undecided: Tensor, temperature: float
) -> Tensor:
    """Log probabilities (N, 2) of the target class and of the rest; halves where the target class is left out.

    They are the same of both networks where the target class is all that is left: all is zero then.
    """
    scaled = _shifted(logits, left_out, 1) / temperature
    rest = _hidden(scaled, others).logsumexp(dim=1, keepdim=True)
    margin = (scaled.gather(1, target) - rest).masked_fill(undecided, 0.0)
    return F.logsigmoid(torch.cat([margin, -margin], dim=1))


def _count(left_out: Tensor, dim: int) -> Tensor:
    return (~left_out).sum(dim, keepdim=True).clamp_min(1)


def _centred(values: Tensor, left_out: Tensor, dim: int) -> Tensor:
    """Values (zero where left out) less the mean of those that are not."""
    return (values - values.sum(dim, keepdim=True) / _count(left_out, dim)).masked_fill(left_out, 0.0)


def _unrelated(student: Tensor, teacher: Tensor, left_out: Tensor, dim: int) -> Tensor:
    """One minus Pearson's correlation along a dimension, the mean of where the teacher varies; of log probabilities.

    Correlations do not see a factor, so probabilities are taken over the largest: neither those that are too small for
    float32 nor differences that are small against the probabilities get lost.
    """
    student, teacher = (_centred(_shifted(x, left_out, dim).expm1(), left_out, dim) for x in (student, teacher))
    squares = [x.square().sum(dim, keepdim=True) for x in (student, teacher)]
    student, teacher = (
        x / square.clamp_min(_FLATTEST**2).sqrt() for x, square in zip((student, teacher), squares, strict=True)
    )
    varies = squares[1].squeeze(dim) > _FLATTEST**2
    return (1 - (student * teacher).sum(dim)).masked_fill(~varies, 0.0).sum() / varies.sum().clamp_min(1)
