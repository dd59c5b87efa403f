"""Exact global selection of the lowest scores over many tensors, by radix select.

The bits of IEEE 754 floats, with those of negative numbers flipped, sort like signed integers. Their 16-bit digits are
counted from the most significant down: two passes over float32 scores find the exact threshold, without sorting or
concatenating the tensors. The only shared state is a histogram of 65,536 counts, so shards of a tensor on several ranks
just sum their histograms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

_DIGIT_BITS = 16
_RADIX = 1 << _DIGIT_BITS
_CHUNK_SIZE = 1 << 19  # scores per chunk; the temporaries of its passes stay in the processor's cache


def keep_highest(
    scores: Sequence[Callable[[], Tensor]],
    *,
    num_pruned: int,
    unit_sizes: Sequence[int],
    positions: Sequence[Sequence[int]] | None = None,
    group: dist.ProcessGroup | None = None,
    whole: Sequence[bool] | None = None,
) -> list[Tensor]:
    """Return masks that prune ``num_pruned`` weights of the lowest scores, but never all units of a tensor.

    Ties are pruned in the order of the tensors, then of the indices (over ranks: of the shards), so the result is the
    same on every rank and in every run.

    Args:
        scores: For each tensor a function that returns the scores of its units, 1-D, float32 or float64, as a new
            tensor that may be overwritten. It is called once per pass, so that the scores of one tensor at a time
            need to be in memory. Tensors of equal size may share a function, which returns a row for each.
        num_pruned: Number of weights to prune; met exactly where a unit is one weight, else within half a unit.
        unit_sizes: Number of weights in a unit, for each function.
        positions: Positions of the tensors of each function in the order in which ties are pruned; by default that of
            the functions.
        group: Process group over which each tensor is sharded; ``None`` if unsharded.
        whole: Whether the tensors of a function are not sharded but equal on each rank; by default none is.

    Returns:
        A bool mask of the shape of each function's scores, True where the unit is kept.

    >>> a, b = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 0.5, 4.0])
    >>> [mask.tolist() for mask in keep_highest([a.clone, b.clone], num_pruned=3, unit_sizes=[1, 1])]
    [[True, False], [False, False, True]]
    """
    positions = [[i] for i in range(len(scores))] if positions is None else positions
    # Protecting the best unit of an emptied tensor prunes another unit instead, which may empty another tensor. The set
    # of protected tensors only grows, so this ends; nearly always after the first round.
    protected: list[set[int]] = [set() for _ in scores]
    groups = [None if is_whole else group for is_whole in whole or [False] * len(scores)]
    while True:
        triples = zip(scores, protected, groups, strict=True)
        sources = [_with_protected_tops(score, sorted(rows), own) if rows else score for score, rows, own in triples]
        masks = _keep(sources, num_pruned, unit_sizes, positions, group, groups)
        emptied = _emptied(masks, group)
        if all(rows <= before for rows, before in zip(emptied, protected, strict=True)):
            return masks
        protected = [rows | before for rows, before in zip(emptied, protected, strict=True)]


def _rows(values: Tensor) -> Tensor:
    """View of scores, or of masks, with a row for each tensor."""
    return values if values.ndim == 2 else values.unsqueeze(0)


def _keep(
    scores: Sequence[Callable[[], Tensor]],
    num_pruned: int,
    unit_sizes: Sequence[int],
    positions: Sequence[Sequence[int]],
    group: dist.ProcessGroup | None,
    groups: Sequence[dist.ProcessGroup | None],
) -> list[Tensor]:
    if num_pruned <= 0:
        return [torch.ones_like(score(), dtype=torch.bool) for score in scores]
    # What is whole is counted once, on the first rank.
    is_first = group is None or dist.get_rank(group) == 0
    sizes = [size if is_first or own is group else 0 for size, own in zip(unit_sizes, groups, strict=True)]
    threshold, excess = _threshold(scores, num_pruned, sizes, group)
    masks, ties, num_ties = [], [], []
    for score in scores:
        key = _sort_keys(score())
        masks.append(key >= threshold)
        row, unit = (_rows(key) == threshold).nonzero().unbind(dim=1)
        ties.append((row, unit))
        num_ties.append(torch.bincount(row, minlength=len(_rows(key))))
    # All units below the threshold are pruned; of those equal to it, as many as are still missing.
    for mask, (row, unit), count, num_dropped in zip(
        masks, ties, num_ties, _split_ties(num_ties, excess, unit_sizes, positions, group, groups), strict=True
    ):
        # Ties are sorted by rows: the first of each row is preceded by those of all rows before.
        rank = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
        dropped = rank < num_dropped.to(row.device)[row]
        _rows(mask)[row[dropped], unit[dropped]] = False
    return masks


def _threshold(
    scores: Sequence[Callable[[], Tensor]], num_pruned: int, unit_sizes: Sequence[int], group: dist.ProcessGroup | None
) -> tuple[int, int]:
    """Key of the last weight to prune, and the number of weights to prune among those of exactly that key."""
    prefix, remaining = None, num_pruned
    # Each pass fixes the next digit of the threshold: the one whose cumulative count reaches the remaining rank among
    # the keys that share the digits found so far.
    for shift in range(scores[0]().element_size() * 8 - _DIGIT_BITS, -1, -_DIGIT_BITS):
        counts = sum(
            torch.bincount(_digits(_sort_keys(part), shift, prefix), minlength=_RADIX) * size
            for score, size in zip(scores, unit_sizes, strict=True)
            for part in score().flatten().split(_CHUNK_SIZE)
        )
        # Integer counts: their sum over ranks does not depend on the order, unlike a sum of floats.
        cumulative = _sum_over_ranks(torch.as_tensor(counts), group).cumsum(0).cpu()
        digit = int(torch.searchsorted(cumulative, remaining))
        remaining -= int(cumulative[digit - 1]) if digit else 0
        prefix = digit - _RADIX // 2 if prefix is None else prefix * _RADIX + digit
    assert prefix is not None
    return prefix, remaining


def _digits(key: Tensor, shift: int, prefix: int | None) -> Tensor:
    """Digits at ``shift`` of the keys that begin with ``prefix``."""
    if prefix is None:
        # The first digit carries the sign: shifted to begin at 0, as bincount needs.
        return (key >> shift).add_(_RADIX // 2)
    return (key[(key >> (shift + _DIGIT_BITS)) == prefix] >> shift).bitwise_and_(_RADIX - 1)


def _sort_keys(scores: Tensor) -> Tensor:
    """Convert scores, in place, to signed integers of the same order; -0.0 comes just before 0.0."""
    key = scores.view(torch.int64 if scores.dtype == torch.float64 else torch.int32)
    highest = torch.iinfo(key.dtype).max
    # Floats are sign and magnitude, integers two's complement. An arithmetic shift spreads the sign over all bits, and
    # flipping the magnitude bits of negative numbers reverses their order.
    return key.bitwise_xor_((key >> (key.element_size() * 8 - 1)).bitwise_and_(highest))


def _split_ties(
    num_ties: list[Tensor],
    excess: int,
    unit_sizes: Sequence[int],
    positions: Sequence[Sequence[int]],
    group: dist.ProcessGroup | None,
    groups: Sequence[dist.ProcessGroup | None],
) -> list[Tensor]:
    """Number of tied units to prune on this rank, for each tensor; in the order of the tensors, then of the ranks."""
    gathered, rank = _gather(torch.cat(num_ties), group)
    whole = torch.cat([torch.full((len(ties),), own is not group) for ties, own in zip(num_ties, groups, strict=True)])
    gathered[1:, whole] = 0
    sizes = torch.cat([torch.full((len(ties),), size) for ties, size in zip(num_ties, unit_sizes, strict=True)])
    order = torch.tensor([position for members in positions for position in members]).argsort()
    num_dropped = torch.zeros(len(order), dtype=torch.int64)
    for tensor in order[gathered.sum(dim=0)[order] > 0].tolist():
        size = int(sizes[tensor])
        for holder, count in enumerate(gathered[:, tensor].tolist()):
            # Rounded to the nearest number of units. Not below zero: a large unit may have overshot already.
            dropped = max(0, min(count, (excess + size // 2) // size))
            excess -= dropped * size
            if holder == (0 if whole[tensor] else rank):
                num_dropped[tensor] = dropped
    return list(num_dropped.split([len(ties) for ties in num_ties]))


def _emptied(masks: list[Tensor], group: dist.ProcessGroup | None) -> list[set[int]]:
    """For each mask the rows without a kept unit on any rank."""
    if not masks:
        return []
    kept = _sum_over_ranks(torch.cat([_rows(mask).any(dim=1) for mask in masks]).long(), group)
    parts = kept.cpu().split([len(_rows(mask)) for mask in masks])
    return [set((part == 0).nonzero().flatten().tolist()) for part in parts]


def _with_protected_tops(
    score: Callable[[], Tensor], rows: list[int], group: dist.ProcessGroup | None
) -> Callable[[], Tensor]:
    """Raise the highest score of some tensors, the first of equal ones, above those of all other tensors."""

    def protected() -> Tensor:
        values = score()
        table = _rows(values)
        chosen = torch.tensor(rows, device=values.device)
        best = torch.full((len(rows),), -torch.inf, dtype=torch.float64, device=values.device)
        if table.shape[1]:
            best = table[chosen].amax(dim=1).double()
        gathered, rank = _gather(best, group)
        # The first of the ranks that hold the highest score of a tensor.
        holds = gathered == gathered.amax(dim=0)
        chosen = chosen[(holds.cumsum(dim=0) == 1)[rank].to(chosen.device) & holds[rank].to(chosen.device)]
        if len(chosen):
            # NaN, as its bits sort above infinity, which is a possible score.
            table[chosen, table[chosen].argmax(dim=1)] = torch.nan
        return values

    return protected


def _sum_over_ranks(counts: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is not None:
        dist.all_reduce(counts, group=group)
    return counts


def _gather(values: Tensor, group: dist.ProcessGroup | None) -> tuple[Tensor, int]:
    """Values of all ranks in the order of the ranks, (ranks, values) on the CPU, and the index of this rank."""
    if group is None:
        return values.unsqueeze(0).cpu(), 0
    gathered = [torch.empty_like(values) for _ in range(dist.get_world_size(group))]
    dist.all_gather(gathered, values.contiguous(), group=group)
    return torch.stack(gathered).cpu(), dist.get_rank(group)
