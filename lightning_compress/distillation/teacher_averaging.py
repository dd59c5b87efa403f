"""What several teachers say together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def mean(logits: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """Logits of the mean of the teachers' probabilities.

    Args:
        logits: ``(N, C)`` of each teacher.
        labels: Not used.

    Returns:
        Log-probabilities ``(N, C)``; of one teacher its logits.
    """
    if len(logits) == 1:
        return logits[0]
    return torch.logsumexp(_log_probabilities(logits), 0) - math.log(len(logits))


def confidence(logits: Sequence[Tensor], labels: Tensor | None) -> Tensor:
    """Logits of a mean of the teachers' probabilities in which each sample trusts those that know its label.

    A teacher's weight is ``1 - exp(L) / sum(exp(L))`` of its cross-entropy ``L``, over one less than the number of
    teachers (Zhang et al. 2022, arXiv:2201.00007, equation 3).

    Args:
        logits: ``(N, C)`` of each teacher.
        labels: Classes ``(N,)``, or probabilities ``(N, C)``.

    Returns:
        Log-probabilities ``(N, C)``; of one teacher its logits.

    Raises:
        ValueError: If there are no labels.
    """
    if len(logits) == 1:
        return logits[0]
    if labels is None:
        raise ValueError("combine='confidence' compares teachers with labels, which the batches do not have.")
    logs = _log_probabilities(logits)
    losses = torch.stack([_cross_entropies(log, labels) for log in logs])
    losses = losses.clamp(max=torch.finfo(losses.dtype).max)  # of several that are infinite none is better
    weights = (1 - losses.softmax(0)) / (len(logits) - 1)
    return torch.logsumexp(logs + weights.log()[:, :, None], 0)


def _cross_entropies(log: Tensor, labels: Tensor) -> Tensor:
    if not labels.is_floating_point():
        return F.nll_loss(log, labels, reduction="none")
    # A class that is impossible to both is no loss.
    return -torch.where(labels > 0, labels * log, 0.0).sum(1)


def _log_probabilities(logits: Sequence[Tensor]) -> Tensor:
    return torch.stack(
        [F.log_softmax(each.double() if each.dtype == torch.double else each.float(), 1) for each in logits]
    )
