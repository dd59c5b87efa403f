"""Histograms over symmetric ranges that are powers of two, so that two of them add up exactly; one row each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
_NUM_TRIALS = 80


def exponent(extremes: Tensor) -> int:
    """The smallest ``k`` such that ``[-2**k, 2**k)`` holds all rows.

    >>> exponent(torch.tensor([[0.5, 3.0]]))
    2
    """
    largest = float(extremes.max())
    return int(torch.frexp(torch.tensor(largest)).exponent) if largest > 0 else 0


def histogram(rows: Tensor, extremes: Tensor, bins: int) -> Tensor:
    """Counts ``(rows, bins)`` of values ``(rows, values)``.

    >>> histogram(torch.tensor([[-1.5, 0.1, 0.2, 1.0]]), torch.tensor([[1.5, 1.0]]), 4).tolist()
    [[1.0, 0.0, 2.0, 1.0]]
    """
    limit = 2.0 ** exponent(extremes)
    # Powers of two round nothing, so that a value close to zero is on the same side of it in any range.
    index = ((rows / limit * (bins / 2)).floor().long() + bins // 2).clamp_(0, bins - 1)
    index += torch.arange(len(rows), device=rows.device).unsqueeze(1) * bins
    counts = torch.bincount(index.flatten(), minlength=len(rows) * bins)
    return counts.view(len(rows), bins).to(torch.float32)


def widened(counts: Tensor, extremes: Tensor, new_extremes: Tensor) -> Tensor:
    """The same counts over a wider range: each doubling merges two bins into one.

    >>> widened(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 1.0]])).tolist()
    [[0.0, 3.0, 7.0, 0.0]]
    """
    if counts.shape[1] == 0:
        return counts
    for _ in range(exponent(new_extremes) - exponent(extremes)):
        merged = counts.unflatten(1, (-1, 2)).sum(dim=2)
        counts = torch.nn.functional.pad(merged, (counts.shape[1] // 4, counts.shape[1] // 4))
    return counts


def edges(counts: Tensor, extremes: Tensor) -> Tensor:
    """Edges ``(bins + 1,)`` of the bins."""
    limit = 2.0 ** exponent(extremes)
    return torch.linspace(-limit, limit, counts.shape[1] + 1, device=counts.device)


def percentiles(counts: Tensor, extremes: Tensor, kept: float) -> tuple[Tensor, Tensor]:
    """Ends of the range outside of which a fraction ``1 - kept`` lies on either side, never beyond the extremes."""
    marks = edges(counts, extremes)
    below = counts.cumsum(dim=1) / counts.sum(dim=1, keepdim=True).clamp(min=1)
    low = marks[(below <= 1 - kept).sum(dim=1).clamp(max=counts.shape[1] - 1)]
    high = marks[(below < kept).sum(dim=1) + 1]
    return torch.maximum(low, -extremes[:, 0]), torch.minimum(high, extremes[:, 1])


def best_span(
    counts: Tensor, extremes: Tensor, *, num_levels: int, symmetric: bool, loss: Loss
) -> tuple[Tensor, Tensor]:
    """The clipped range with the smallest loss, found one end at a time.

    Args:
        counts: ``(rows, bins)``.
        extremes: ``(rows, 2)``.
        num_levels: Number of integers.
        symmetric: Whether both ends move together.
        loss: Of counts, bin centres ``(bins,)`` and both ends ``(rows,)``, a value for each row.
    """
    marks = edges(counts, extremes)
    centres = (marks[1:] + marks[:-1]) / 2
    low, high = -extremes[:, 0].clamp(min=0), extremes[:, 1].clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
        factor = _best_factor(lambda f: loss(counts, centres, low * f, high * f, num_levels), counts)
        return low * factor, high * factor
    high = high * _best_factor(lambda f: loss(counts, centres, low, high * f, num_levels), counts)
    low = low * _best_factor(lambda f: loss(counts, centres, low * f, high, num_levels), counts)
    return low, high


def squared_error(counts: Tensor, centres: Tensor, low: Tensor, high: Tensor, num_levels: int) -> Tensor:
    """Sum of squared errors of rounding to so many levels from ``low`` to ``high``, ``(rows,)``."""
    step = ((high - low) / (num_levels - 1)).clamp(min=1e-30).unsqueeze(1)
    zero = torch.round(low.unsqueeze(1) / step)
    rounded = torch.round(centres / step).clamp(zero, zero + num_levels - 1) * step
    return ((rounded - centres).square() * counts).sum(dim=1)


def divergence(counts: Tensor, centres: Tensor, low: Tensor, high: Tensor, num_levels: int) -> Tensor:
    """Kullback-Leibler divergence of the values as integers from the values as they are, ``(rows,)``.

    What lies beyond an end counts in the end's bin, and a level's count is spread over those of its bins that hold
    anything, as in the calibration by Migacz 2017.
    """
    step = ((high - low) / (num_levels - 1)).clamp(min=1e-30).unsqueeze(1)
    inside = (centres >= low.unsqueeze(1)) & (centres <= high.unsqueeze(1))
    level = torch.round((centres - low.unsqueeze(1)) / step).clamp(0, num_levels - 1).long()
    clipped = counts * inside
    first = inside.to(torch.int8).argmax(dim=1, keepdim=True)
    last = (inside.shape[1] - 1 - inside.flip(1).to(torch.int8).argmax(dim=1, keepdim=True)).clamp(min=0)
    reference = clipped.scatter_add(1, first, (counts * (centres < low.unsqueeze(1))).sum(dim=1, keepdim=True))
    reference = reference.scatter_add(1, last, (counts * (centres > high.unsqueeze(1))).sum(dim=1, keepdim=True))
    held = (clipped > 0).to(counts.dtype)
    sums = counts.new_zeros(len(counts), num_levels)
    total, number = sums.scatter_add(1, level, clipped), sums.scatter_add(1, level, held)
    spread = (total / number.clamp(min=1)).gather(1, level) * held
    p = reference / reference.sum(dim=1, keepdim=True).clamp(min=1)
    q = spread / spread.sum(dim=1, keepdim=True).clamp(min=1)
    # Where the integers have nothing but the reference has, a small probability instead of an infinite loss.
    return torch.special.xlogy(p, p / q.clamp(min=1e-6)).sum(dim=1)


def _best_factor(loss_at: Callable[[float], Tensor], counts: Tensor) -> Tensor:
    factors = torch.linspace(1.0, 0.2, _NUM_TRIALS, device=counts.device)
    losses = torch.stack([loss_at(float(factor)) for factor in factors])
    return factors[losses.argmin(dim=0)]
