"""The range that loses least when values are rounded, found on their histogram.

A loss is a sum over levels, and a level takes neighbouring bins: with sums over the first bins, made once, a trial
costs a few numbers a level instead of a few a bin.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_compress.functional import histograms

Loss = Callable[[Tensor, Tensor], Tensor]
# Evenly down to a fifth, which is where most best ranges are, then in ratios, for outliers that are far away.
_FACTORS = torch.cat([torch.linspace(1.0, 0.2, 81), torch.logspace(math.log10(0.2), -2.0, 41)[1:]])
_AT_ONCE = 1 << 17  # levels of rows of trials, which bounds the memory
_RARE = 1e-6  # probability of what the integers do not have, so that the divergence stays finite


def best_range(
    counts: Tensor,
    min_max: Tensor,
    *,
    num_levels: int,
    symmetric: bool,
    loss: Callable[[Tensor, Tensor, int], Loss],
) -> tuple[Tensor, Tensor]:
    """The clipped range with the smallest loss, found one end at a time.

    Args:
        counts: ``(rows, bins)``.
        min_max: ``(rows, 2)``.
        num_levels: Number of integers.
        symmetric: Whether both ends move together.
        loss: :func:`squared_error` or :func:`divergence`.

    Returns:
        Lower and upper ends, ``(rows,)`` each.
    """
    edges = histograms.edges(counts, min_max)
    lost = loss(counts, (edges[1:] + edges[:-1]) / 2, num_levels)
    low, high = -min_max[:, :1].clamp(min=0), min_max[:, 1:].clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        high = high * _best_factor(lambda factors: lost(-high * factors, high * factors), high, num_levels)
        return -high.squeeze(1), high.squeeze(1)
    high = high * _best_factor(lambda factors: lost(low, high * factors), high, num_levels)
    low = low * _best_factor(lambda factors: lost(low * factors, high), low, num_levels)
    return low.squeeze(1), high.squeeze(1)


def squared_error(counts: Tensor, centres: Tensor, num_levels: int) -> Loss:
    """Squared errors of rounding to so many levels from a lower to an upper end, ends and losses ``(rows, trials)``.

    The sum over the values, less the sum of their squares, which no range changes.
    """
    below, moment_below = _below(counts), _below(counts * centres)

    def lost(low: Tensor, high: Tensor) -> Tensor:
        low, high, step = _grid(low, high, num_levels)
        values = (torch.round(low / step) + torch.arange(num_levels, device=low.device)) * step
        # What is beyond the ends has the outermost levels.
        ends = pad(_bin(values[..., 1:] - step / 2, centres), (1, 0))
        ends = pad(ends, (0, 1), value=counts.shape[1])
        number, moment = _at(below, ends).diff(dim=2), _at(moment_below, ends).diff(dim=2)
        return (values.square() * number - 2 * values * moment).sum(dim=2)

    return lost


def divergence(counts: Tensor, centres: Tensor, num_levels: int) -> Loss:
    """Kullback-Leibler divergences of values as integers from values as they are, ends and losses ``(rows, trials)``.

    What lies beyond an end counts in the end's bin, and a level's count is spread over those of its bins that hold
    anything, as in the calibration by Migacz 2017.
    """
    below, held_below, entropy_below = (_below(t) for t in (counts, counts > 0, torch.xlogy(counts, counts)))
    whole = below[:, -1:].clamp(min=1)

    def lost(low: Tensor, high: Tensor) -> Tensor:
        low, high, step = _grid(low, high, num_levels)
        ends = _bin(low + step * (torch.arange(num_levels + 1, device=low.device) - 0.5), centres)
        first, last = _bin(low, centres), _bin(high, centres)
        ends = torch.cat([first, ends[..., 1:-1], last], dim=2).clamp(first, last)
        # p is what there is, q what the integers make of it.
        number, held = _at(below, ends).diff(dim=2), _at(held_below, ends).diff(dim=2)
        q = (number / held.clamp(min=1) / number.sum(dim=2, keepdim=True).clamp(min=1)).clamp(min=_RARE)
        p_log_p = _at(entropy_below, torch.cat([first, last], dim=2)).diff(dim=2).squeeze(2)
        p_log_q = torch.xlogy(number, q).sum(dim=2)
        for edge, beyond in ((first, _at(below, first)), (last - 1, whole.unsqueeze(2) - _at(below, last))):
            edge = edge.clamp(0, counts.shape[1] - 1)
            inside = (_at(below, edge + 1) - _at(below, edge)) * (first < last)
            level = torch.round((centres[edge] - low) / step).clamp(0, num_levels - 1).long()
            p_log_p += (torch.xlogy(inside + beyond, inside + beyond) - torch.xlogy(inside, inside)).squeeze(2)
            p_log_q += torch.xlogy(beyond, torch.where(inside > 0, q.gather(2, level), _RARE)).squeeze(2)
        return (p_log_p - p_log_q) / whole - torch.log(whole)

    return lost


def _best_factor(losses: Callable[[Tensor], Tensor], end: Tensor, num_levels: int) -> Tensor:
    """What an end ``(rows, 1)`` is multiplied by, of the same shape."""
    factors = _FACTORS.to(end.device)
    parts = factors.split(max(1, _AT_ONCE // (len(end) * num_levels)))
    return factors[torch.cat([losses(part) for part in parts], dim=1).argmin(dim=1, keepdim=True)]


def _grid(low: Tensor, high: Tensor, num_levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Both ends and the step between levels, ``(rows, trials, 1)``."""
    low, high = (end.unsqueeze(2) for end in torch.broadcast_tensors(low, high))
    return low, high, ((high - low) / (num_levels - 1)).clamp(min=1e-30)


def _below(values: Tensor) -> Tensor:
    """Sums over the bins before each edge, ``(rows, bins + 1)``: float64, as most of them cancels in differences."""
    return pad(values.to(torch.float64).cumsum(dim=1), (1, 0))


def _bin(values: Tensor, centres: Tensor) -> Tensor:
    """The first bin whose centre is at a value or beyond it; their number, where there is none."""
    ahead = (values - centres[0]) / (centres[1] - centres[0])
    return ahead.ceil_().clamp_(0, len(centres)).long()


def _at(below: Tensor, bins: Tensor) -> Tensor:
    return below.gather(1, bins.flatten(1)).view_as(bins)
