"""Histograms over symmetric power-of-two ranges, so that those of several batches or ranks add up exactly.

``min_max`` is of shape ``(rows, 2)`` throughout: the maximum of ``-x`` and the maximum of ``x`` of each row, that is,
the negated minimum and the maximum. Stored like this both merge by one elementwise maximum, over batches or, in one
all-reduce, over ranks. All rows share one range, ``[-2**k, 2**k)``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def range_exponent(min_max: Tensor) -> int:
    """Return the smallest integer ``k`` for which ``[-2**k, 2**k)`` contains all rows; 0 if all values are zero.

    Args:
        min_max: Maximum of ``-x`` and of ``x``, ``(rows, 2)``.

    >>> range_exponent(torch.tensor([[0.5, 3.0]]))
    2
    """
    largest = float(min_max.max())
    # frexp reads the exponent off the bits, where log2 would round near powers of two.
    return int(torch.frexp(torch.tensor(max(largest, 0.0))).exponent)


def histogram(rows: Tensor, min_max: Tensor, bins: int) -> Tensor:
    """Count values in equal bins over ``[-2**k, 2**k)``.

    Args:
        rows: Values ``(rows, values)``.
        min_max: Maximum of ``-x`` and of ``x``, ``(rows, 2)``; its :func:`range_exponent` is ``k``.
        bins: Number of bins, even.

    Returns:
        Counts ``(rows, bins)``, float32.

    >>> histogram(torch.tensor([[-1.5, 0.1, 0.2, 1.0]]), torch.tensor([[1.5, 1.0]]), 4).tolist()
    [[1.0, 0.0, 2.0, 1.0]]
    """
    limit = 2.0 ** range_exponent(min_max)
    # Dividing by a power of two is exact, so a value near zero falls on the same side of it in any range: counting and
    # then widening the range gives the same bins as counting in the wider range.
    index = ((rows / limit * (bins / 2)).floor().long() + bins // 2).clamp_(0, bins - 1)
    # One bincount for all rows: each row gets a block of bins of its own.
    index += torch.arange(len(rows), device=rows.device).unsqueeze(1) * bins
    counts = torch.bincount(index.flatten(), minlength=len(rows) * bins)
    return counts.view(len(rows), bins).to(torch.float32)


def rebin(counts: Tensor, min_max: Tensor, new_min_max: Tensor) -> Tensor:
    """Convert counts to a wider range with the same number of bins.

    Args:
        counts: Counts ``(rows, bins)`` over the range of ``min_max``; returned as they are if there are no bins.
        min_max: Maximum of ``-x`` and of ``x``, ``(rows, 2)``.
        new_min_max: The same of the wider range.

    >>> rebin(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[3.0, 1.0]])).tolist()
    [[0.0, 3.0, 7.0, 0.0]]
    """
    if counts.shape[1] == 0:
        return counts
    # Each doubling of the range merges neighboring bins; they fill the inner half of the new ones.
    for _ in range(range_exponent(new_min_max) - range_exponent(min_max)):
        merged = counts.unflatten(1, (-1, 2)).sum(dim=2)
        counts = torch.nn.functional.pad(merged, (counts.shape[1] // 4, counts.shape[1] // 4))
    return counts


def bin_edges(counts: Tensor, min_max: Tensor) -> Tensor:
    """Return the edges of the bins, ``(bins + 1,)``, shared by all rows.

    >>> bin_edges(torch.zeros(1, 4), torch.tensor([[1.5, 1.0]])).tolist()
    [-2.0, -1.0, 0.0, 1.0, 2.0]
    """
    limit = 2.0 ** range_exponent(min_max)
    return torch.linspace(-limit, limit, counts.shape[1] + 1, device=counts.device)


def percentiles(counts: Tensor, min_max: Tensor, kept: float) -> tuple[Tensor, Tensor]:
    """Return the range that excludes a fraction ``1 - kept`` of the values on either side.

    Args:
        counts: Counts ``(rows, bins)``.
        min_max: Maximum of ``-x`` and of ``x``, ``(rows, 2)``; the result never lies beyond.
        kept: Fraction in (0.5, 1].

    Returns:
        Lower and upper ends, ``(rows,)`` each, to the next outer edge of a bin.

    >>> counts = histogram(torch.linspace(-1.9, 1.9, 100)[None], torch.tensor([[1.9, 1.9]]), 8)
    >>> percentiles(counts, torch.tensor([[1.9, 1.9]]), 0.8)
    (tensor([-1.5000]), tensor([1.5000]))
    """
    edges = bin_edges(counts, min_max)
    below = counts.cumsum(dim=1) / counts.sum(dim=1, keepdim=True).clamp(min=1)
    # The lower end is the left edge of the bin in which the lower percentile lies, the upper end the right edge of that
    # of the upper one.
    lower = edges[(below <= 1 - kept).sum(dim=1)]
    # Clamped, as rounding may leave the last sum below 1.
    upper = edges[((below < kept).sum(dim=1) + 1).clamp(max=counts.shape[1])]
    return torch.maximum(lower, -min_max[:, 0]), torch.minimum(upper, min_max[:, 1])
