"""Which channels go, group by group or all together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.channels.costs import Cost
from lightning_compress.channels.groups import ChannelGroup
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.pruning.probe_scores import probe_score
from lightning_compress.pruning.pruner import Pruner
from lightning_compress.pruning.ranked_channel_group import RankedChannelGroup
from lightning_compress.pruning.scores import Score


@dataclass(frozen=True, eq=False)
class ChannelRankingGroup:
    """Groups whose channels are ranked together.

    Attributes:
        members: The groups.
        sparsity: The part of the cost that is gone in the end.
        cost: What is counted.
    """

    members: tuple[RankedChannelGroup, ...]
    sparsity: float
    cost: Cost

    @cached_property
    def dense(self) -> float:
        """The cost with all channels."""
        return self.cost.left(self._none)

    @cached_property
    def savings(self) -> list[float]:
        """What a channel of each group saves, on average over half of them."""
        saved = []
        for group in self._none:
            half = torch.arange(group.num_channels) < max(group.num_channels // 2, 1)
            saved.append((self.dense - self.cost.left({**self._none, group: half})) / int(half.sum()))
        least = max(sum(saved) / len(saved) / 100, 1e-12)  # a clock may say that nothing was saved
        return [max(each, least) for each in saved]

    @property
    def _none(self) -> dict[ChannelGroup, Tensor]:
        return {m.group: torch.zeros(m.group.num_channels, dtype=torch.bool) for m in self.members}


class ChannelPruner(Pruner[ChannelRankingGroup]):
    """Masks for everything that makes a channel.

    Args:
        constraint: Holds the masks of all tensors that make channels.
        pools: What is ranked together.
        score: What ranks the channels.
        round_to: Keep a multiple of so many channels of a layer.
    """

    def __init__(
        self, constraint: MaskConstraint, pools: Sequence[ChannelRankingGroup], score: Score, *, round_to: int = 1
    ) -> None:
        super().__init__(constraint, pools, score, probe_score(score, channels=True))
        self.round_to = round_to

    @override
    def _prune(self, due: Sequence[float], step: int) -> None:
        masks = self.constraint.masks
        for pool, share in zip(self.pools, due, strict=True):
            for member, gone in zip(pool.members, self._lowest(pool, share, step), strict=True):
                for i, part in member.masked:
                    masks[i].index_fill_(part.dim, part.of(gone).to(masks[i].device), False)
        self.constraint.replace(masks)

    @override
    def _masked(self, pool: ChannelRankingGroup) -> float:
        gone = {member.group: self._gone(member) for member in pool.members}
        return 1 - pool.cost.left(gone) / pool.dense

    def _lowest(self, pool: ChannelRankingGroup, share: float, step: int) -> list[Tensor]:
        """The channels of each group that go: as few of the lowest as it takes to lose a share of the cost."""
        of_members = [self.score.of_channels(member, self.accumulated_scores, step) for member in pool.members]
        scores = [per_saving(*each) for each in zip(of_members, pool.savings, strict=True)]
        gone = [self._gone(member) for member in pool.members]
        scores = [values.masked_fill(dead, -math.inf) for values, dead in zip(scores, gone, strict=True)]
        order = torch.cat(scores).argsort(stable=True)
        sizes = [member.group.num_channels for member in pool.members]
        steps = [multiple(member.group, self.round_to) for member in pool.members]

        def lowest(num: int) -> list[Tensor]:
            chosen = torch.zeros(len(order), dtype=torch.bool).index_fill_(0, order[:num], True)
            return [rounded(*each) for each in zip(chosen.split(sizes), scores, steps, strict=True)]

        groups = [member.group for member in pool.members]
        allowed = pool.dense * (1 - share) * (1 + 1e-9)
        fewest = _first(len(order), lambda num: pool.cost.left(dict(zip(groups, lowest(num), strict=True))) <= allowed)
        return lowest(fewest)

    def _gone(self, member: RankedChannelGroup) -> Tensor:
        """The channels that are masked."""
        i, part = member.masked[0]
        masked = self.constraint.zeros[i].movedim(part.dim, 0).flatten(1).all(dim=1).cpu()
        gone = torch.zeros(member.group.num_channels, dtype=torch.bool)
        gone[part.channels[masked[part.positions]]] = True
        return gone


def multiple(group: ChannelGroup, round_to: int) -> int:
    """Of how many of a group's channels a multiple is kept, so that its layers keep a multiple of ``round_to``.

    A channel of the group may be several of a layer: a head, or one channel of each group of a convolution.
    """
    widths = {len(part.positions) // group.num_channels for part in group.output_slices}
    return math.lcm(*(round_to // math.gcd(round_to, width) for width in widths))


def per_saving(scores: Tensor, saving: float) -> Tensor:
    """Scores per square root of what a channel saves, so that of equally important ones the dearer goes first.

    Per whole saving, the first layers, where images are large and channels few and dear, would lose nearly all of them.
    """
    unit = math.sqrt(saving)
    return torch.where(scores < 0, scores * unit, scores / unit)


def rounded(chosen: Tensor, scores: Tensor, step: int) -> Tensor:
    """Fewer of the chosen channels, the lowest, so that a multiple of ``step`` is kept, and at least one.

    Args:
        chosen: Which channels are to go.
        scores: Their scores.
        step: What a multiple is kept of; all are where there are no more than that.
    """
    kept = max(len(chosen) - int(chosen.sum()), 1)
    wanted = min(-(-kept // step) * step, len(chosen))
    order = scores.argsort(stable=True)
    return torch.zeros_like(chosen).index_fill_(0, order[: len(chosen) - wanted], True)


def least_left(groups: Sequence[ChannelGroup], cost: Cost, round_to: int) -> float:
    """The cost with as few channels of each group as may be kept."""
    gone: dict[ChannelGroup, Tensor] = {}
    for group in groups:
        scores = torch.arange(group.num_channels)
        gone[group] = rounded(torch.ones_like(scores, dtype=torch.bool), scores, multiple(group, round_to))
    return cost.left(gone)


def _first(high: int, holds: Callable[[int], bool]) -> int:
    """The least number up to ``high`` of which something holds that then holds of all that are larger."""
    low = 0
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high
