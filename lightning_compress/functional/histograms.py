"""Histograms over symmetric ranges that are powers of two, so that two of them add up exactly; one row each."""

from __future__ import annotations

import torch
from torch import Tensor


def exponent(min_max: Tensor) -> int:
    """The smallest ``k`` such that ``[-2**k, 2**k)`` holds all rows.

    >>> exponent(torch.tensor([[0.5, 3.0]]))
    2
    """
    largest = float(min_max.max())
    return int(torch.frexp(torch.tensor(largest)).exponent) if largest > 0 else 0


def histogram(rows: Tensor, min_max: Tensor, bins: int) -> Tensor:
    """Counts ``(rows, bins)`` of values ``(rows, values)``.

    >>> histogram(torch.tensor([[-1.5, 0.1, 0.2, 1.0]]), torch.tensor([[1.5, 1.0]]), 4).tolist()
    [[1.0, 0.0, 2.0, 1.0]]
    """
    limit = 2.0 ** exponent(min_max)
    # Powers of two round nothing, so that a value close to zero is on the same side of it in any range.
    index = ((rows / limit * (bins / 2)).floor().long() + bins // 2).clamp_(0, bins - 1)
    index += torch.arange(len(rows), device=rows.device).unsqueeze(1) * bins
    counts = torch.bincount(index.flatten(), minlength=len(rows) * bins)
    return counts.view(len(rows), bins).to(torch.float32)


def widened(counts: Tensor, min_max: Tensor, new_extremes: Tensor) -> Tensor:
    """The same counts over a wider range: each doubling merges two bins into one.

    >>> widened(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 1.0]])).tolist()
    [[0.0, 3.0, 7.0, 0.0]]
    """
    if counts.shape[1] == 0:
        return counts
    for _ in range(exponent(new_extremes) - exponent(min_max)):
        merged = counts.unflatten(1, (-1, 2)).sum(dim=2)
        counts = torch.nn.functional.pad(merged, (counts.shape[1] // 4, counts.shape[1] // 4))
    return counts


def edges(counts: Tensor, min_max: Tensor) -> Tensor:
    """Edges ``(bins + 1,)`` of the bins."""
    limit = 2.0 ** exponent(min_max)
    return torch.linspace(-limit, limit, counts.shape[1] + 1, device=counts.device)


def percentiles(counts: Tensor, min_max: Tensor, kept: float) -> tuple[Tensor, Tensor]:
    """Ends of the range outside of which a fraction ``1 - kept`` lies on either side, never beyond the min_max."""
    marks = edges(counts, min_max)
    below = counts.cumsum(dim=1) / counts.sum(dim=1, keepdim=True).clamp(min=1)
    low = marks[(below <= 1 - kept).sum(dim=1).clamp(max=counts.shape[1] - 1)]
    high = marks[(below < kept).sum(dim=1) + 1]
    return torch.maximum(low, -min_max[:, 0]), torch.minimum(high, min_max[:, 1])
