"""Combination of the logits of several teachers: uniform or confidence-weighted mean of their probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def average_uniformly(logits: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """Average the class probabilities of several teachers.

    Args:
        logits: Logits ``(N, C)`` of each teacher.
        labels: Not used.

    Returns:
        Log-probabilities ``(N, C)`` in float32, or float64 if logits are; with one teacher, its logits.

    >>> logits = [torch.tensor([[0.0, 0.0]]), torch.tensor([[100.0, 0.0]])]
    >>> average_uniformly(logits, labels=None).exp()
    tensor([[0.7500, 0.2500]])
    """
    if len(logits) == 1:
        return logits[0]
    return torch.logsumexp(_log_probabilities(logits), 0) - math.log(len(logits))


def average_by_confidence(logits: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """Average the class probabilities of several teachers, weighted per sample by their confidence in the label.

    The weight of a teacher with cross-entropy ``L`` is ``(1 - exp(L) / sum(exp(L))) / (T - 1)`` for ``T`` teachers
    (Zhang et al. 2022, arXiv:2201.00007, equation 3).

    Args:
        logits: Logits ``(N, C)`` of each teacher.
        labels: Classes ``(N,)``, or probabilities ``(N, C)``.

    Returns:
        Log-probabilities ``(N, C)`` in float32, or float64 if logits are; with one teacher, its logits.

    Raises:
        ValueError: If there are no labels.
    """
    if len(logits) == 1:
        return logits[0]
    if labels is None:
        raise ValueError("combine='confidence' compares teachers with labels, which the batches do not have.")
    log_probabilities = _log_probabilities(logits)
    losses = torch.stack([_cross_entropies(each, labels) for each in log_probabilities])
    # Teachers with an infinite loss become equally bad: softmax of several infinities would be NaN.
    losses = losses.clamp(max=torch.finfo(losses.dtype).max)
    weights = (1 - losses.softmax(0)) / (len(logits) - 1)
    return torch.logsumexp(log_probabilities + weights.log()[:, :, None], 0)


def _cross_entropies(log_probabilities: Tensor, labels: Tensor) -> Tensor:
    if not labels.is_floating_point():
        return F.nll_loss(log_probabilities, labels, reduction="none")
    # A class with probability zero in both contributes 0 * inf = NaN, but has no loss.
    return -torch.where(labels > 0, labels * log_probabilities, 0.0).sum(1)


def _log_probabilities(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [F.log_softmax(each.double() if each.dtype == torch.double else each.float(), 1) for each in logits]
    )
