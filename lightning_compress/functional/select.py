"""Exact selection of the lowest scores of many tensors without concatenating them.

A float's bits, with those of negative numbers flipped, sort as integers. Their 16-bit digits are counted from the
highest down, so the threshold is found in two passes over float32 scores with a histogram of 65,536 counts as the only
shared memory, and exactly. Shards of one tensor on several ranks only add their histograms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_DIGIT = 16
_RADIX = 1 << _DIGIT
_CHUNK = 1 << 19  # the passes over this many scores stay in a processor's cache


def keep_highest(
    scores: Sequence[Callable[[], Tensor]],
    *,
    num_pruned: int,
    unit_sizes: Sequence[int],
    group: dist.ProcessGroup | None = None,
) -> list[Tensor]:
    """Which units to keep so that ``num_pruned`` weights of the lowest score go and no tensor loses its last unit.

    Ties go in the order of the tensors, then of the indices (across ranks: of the shards), so every rank and every
    run decides alike.

    Args:
        scores: For each tensor a function that returns its unit scores, 1-D, float32 or float64, in memory of their
            own; it is called once per pass, so that no more than one tensor's scores need to be in memory.
        num_pruned: Number of weights to prune; hit exactly where a unit is one weight, else to half a unit.
        unit_sizes: For each tensor the number of weights in one unit.
        group: Process group over which each tensor is sharded by its first dimension; ``None`` if it is whole.

    Returns:
        A bool mask for each tensor, 1-D, True where the unit is kept.

    >>> a, b = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.5, 4.0])
    >>> [mask.tolist() for mask in keep_highest([a.clone, b.clone], num_pruned=3, unit_sizes=[1, 1])]
    [[True, False], [False, False, True]]
    """
    rescued: set[int] = set()
    while True:
        sources = [_with_top(score, group) if i in rescued else score for i, score in enumerate(scores)]
        masks = _keep(sources, num_pruned, unit_sizes, group)
        emptied = _emptied(masks, group)
        if not emptied - rescued:
            return masks
        rescued |= emptied


def _keep(
    scores: Sequence[Callable[[], Tensor]], num_pruned: int, unit_sizes: Sequence[int], group: dist.ProcessGroup | None
) -> list[Tensor]:
    if num_pruned <= 0:
        return [torch.ones_like(score(), dtype=torch.bool) for score in scores]
    threshold, excess = _threshold(scores, num_pruned, unit_sizes, group)
    masks, ties = [], []
    for score in scores:
        key = _sortable(score())
        masks.append(key >= threshold)
        ties.append((key == threshold).nonzero().flatten())
    drops = _share_ties([len(tie) for tie in ties], excess, unit_sizes, group, masks[0].device)
    for mask, tie, drop in zip(masks, ties, drops, strict=True):
        mask[tie[:drop]] = False
    return masks


def _threshold(
    scores: Sequence[Callable[[], Tensor]], num_pruned: int, unit_sizes: Sequence[int], group: dist.ProcessGroup | None
) -> tuple[int, int]:
    """The key of the last weight to go, and how many of the weights with just that key go."""
    prefix, rest = None, num_pruned
    for shift in range(scores[0]().element_size() * 8 - _DIGIT, -1, -_DIGIT):
        counts = sum(
            torch.bincount(_digits(_sortable(part), shift, prefix), minlength=_RADIX) * size
            for score, size in zip(scores, unit_sizes, strict=True)
            for part in score().split(_CHUNK)
        )
        cumulated = _total(torch.as_tensor(counts), group).cumsum(0).cpu()
        digit = int(torch.searchsorted(cumulated, rest))
        rest -= int(cumulated[digit - 1]) if digit else 0
        prefix = digit - _RADIX // 2 if prefix is None else prefix * _RADIX + digit
    assert prefix is not None
    return prefix, rest


def _digits(key: Tensor, shift: int, prefix: int | None) -> Tensor:
    """The digits at ``shift`` of keys that begin with ``prefix``; the first digit, which has the sign, from 0 up."""
    if prefix is None:
        return (key >> shift).add_(_RADIX // 2)
    return (key[(key >> (shift + _DIGIT)) == prefix] >> shift).bitwise_and_(_RADIX - 1)


def _sortable(scores: Tensor) -> Tensor:
    """Signed integers that sort as the scores do, in the scores' memory; -0.0 comes just before 0.0."""
    key = scores.view(torch.int64 if scores.dtype == torch.float64 else torch.int32)
    highest = torch.iinfo(key.dtype).max
    return key.bitwise_xor_((key >> (key.element_size() * 8 - 1)).bitwise_and_(highest))


def _share_ties(
    num_ties: list[int],
    excess: int,
    unit_sizes: Sequence[int],
    group: dist.ProcessGroup | None,
    device: torch.device,
) -> list[int]:
    """How many of the tied units of each tensor go on this rank; tensors first come first served, then ranks."""
    everywhere, rank = _gather(num_ties, group, device)
    drops = []
    for tensor, size in enumerate(unit_sizes):
        for holder, counts in enumerate(everywhere):
            # Not below zero: a large unit may have gone too far already.
            drop = max(0, min(counts[tensor], (excess + size // 2) // size))
            excess -= drop * size
            if holder == rank:
                drops.append(drop)
    return drops


def _emptied(masks: list[Tensor], group: dist.ProcessGroup | None) -> set[int]:
    if not masks:
        return set()
    kept = torch.stack([mask.any() for mask in masks]).long()
    return {i for i, any_kept in enumerate(_total(kept, group).tolist()) if not any_kept}


def _with_top(score: Callable[[], Tensor], group: dist.ProcessGroup | None) -> Callable[[], Tensor]:
    """The same scores with the highest of the tensor, the first of them, raised above every other tensor's."""

    def raised() -> Tensor:
        values = score()
        best = float(values.max()) if len(values) else -torch.inf
        everywhere, rank = _gather([best], group, values.device, torch.float64)
        tops = [top for (top,) in everywhere]
        if tops.index(max(tops)) == rank:
            values[values.argmax()] = torch.nan  # sorts above infinity, which a score may be
        return values

    return raised


def _total(counts: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(counts, group=group)
    return counts


def _gather(
    values: list, group: dist.ProcessGroup | None, device: torch.device, dtype: torch.dtype = torch.int64
) -> tuple[list[list], int]:
    """Every rank's values in the order of the ranks, and this rank's place among them."""
    if group is None:
        return [values], 0
    mine = torch.tensor(values, dtype=dtype, device=device)
    everywhere = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(everywhere, mine, group=group)
    return [other.tolist() for other in everywhere], dist.get_rank(group)
