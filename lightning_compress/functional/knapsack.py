"""One option for each item, under a budget."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MOST_UNITS = 2**17  # in which the budget is counted: time and memory of the table grow with it


def cheapest(sizes: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], budget: int) -> list[int]:
    """One option of every item: the smallest total loss among choices whose total size is within the budget.

    The multiple-choice knapsack (Kellerer, Pferschy and Pisinger 2004, chapter 11), by dynamic programming over what
    the budget leaves above every item's smallest option. Exact where that is at most 2**17 greatest common divisors of
    the differences between sizes. Beyond, differences are rounded up to a 2**17th part of it: the budget is never
    exceeded, and no choice within a budget smaller by one such part for every item has a smaller loss.

    Args:
        sizes: Of every item's options, the smallest first.
        losses: Of the same options, finite.
        budget: The largest total size.

    Returns:
        The index of an option for each item; of equal losses the smallest.

    Raises:
        ValueError: If the smallest options together exceed the budget.

    >>> cheapest([[1, 4], [2, 4]], [[5.0, 0.0], [3.0, 1.0]], 6)
    [1, 0]
    """
    smallest = sum(options[0] for options in sizes)
    if smallest > budget:
        raise ValueError(f"A budget of {budget} is impossible: the smallest choice takes {smallest}.")
    extras = [[size - options[0] for size in options] for options in sizes]
    spare = min(budget - smallest, sum(max(options) for options in extras))
    unit = max(math.gcd(*(extra for options in extras for extra in options)), -(-spare // _MOST_UNITS), 1)
    units = [[-(-extra // unit) for extra in options] for options in extras]
    # No more than all of the largest can be spent; rounded up, they may come to more than ``spare``.
    return _solve(units, losses, min((budget - smallest) // unit, sum(map(max, units))))


def _solve(units: Sequence[Sequence[int]], losses: Sequence[Sequence[float]], spare: int) -> list[int]:
    best = torch.zeros(spare + 1, dtype=torch.float64)  # the smallest loss so far, by units that may be spent
    picks = []
    for options, costs in zip(units, losses, strict=True):
        best, pick = _with_item(best, options, costs)
        picks.append(pick)
    chosen: list[int] = []
    for options, pick in zip(reversed(units), reversed(picks), strict=True):
        chosen.append(int(pick[spare]))
        spare -= options[chosen[-1]]
    return chosen[::-1]


def _with_item(best: Tensor, options: Sequence[int], costs: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The smallest losses with one more item, and which of its options they take."""
    total, pick = best + costs[0], torch.zeros(len(best), dtype=torch.int16)
    for index, (extra, cost) in enumerate(zip(options, costs, strict=True)):
        if extra < len(best):
            reached = best[: len(best) - extra] + cost
            pick[extra:].masked_fill_(reached < total[extra:], index)
            total[extra:] = torch.minimum(total[extra:], reached)
    return total, pick
