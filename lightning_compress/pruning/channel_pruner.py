"""Structured pruning: masks of whole channels, ranked by their score per saved cost."""

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
    """Channel groups that are ranked together.

    Attributes:
        channel_groups: The channel groups.
        sparsity: Fraction of the cost to remove by the end of the schedule.
        cost: Cost of the remaining channels.
    """

    channel_groups: tuple[RankedChannelGroup, ...]
    sparsity: float
    cost: Cost

    @cached_property
    def dense_cost(self) -> float:
        """Cost with all channels."""
        return self.cost.remaining(self._none_removed)

    @cached_property
    def savings(self) -> list[Tensor]:
        """Cost saved by each channel of each channel group, averaged over half of its channels; above zero.

        Blocks differ in what they save, and each counts by itself.
        """
        savings = [self._saved_by(group) for group in self._none_removed]
        # A measured latency may not decrease at all, and scores are divided by the saving.
        floor = max(sum(float(saved.mean()) for saved in savings) / len(savings) / 100, 1e-12)
        return [saved.clamp(min=floor) for saved in savings]

    def _saved_by(self, group: ChannelGroup) -> Tensor:
        number = group.num_channels
        half = torch.arange(number) < max(number // 2, 1)
        tried = torch.eye(number, dtype=torch.bool) if group.blocks else half[None]
        remaining = [self.cost.remaining({**self._none_removed, group: removed}) for removed in tried]
        saved = (self.dense_cost - torch.tensor(remaining, dtype=torch.float64)) / tried.sum(dim=1)
        return saved.expand(number)

    @property
    def _none_removed(self) -> dict[ChannelGroup, Tensor]:
        groups = [ranked.group for ranked in self.channel_groups]
        return {group: torch.zeros(group.num_channels, dtype=torch.bool) for group in groups}


class ChannelPruner(Pruner[ChannelRankingGroup]):
    """Pruner of whole channels: masks all tensors that produce a channel.

    Args:
        constraint: Masks of all tensors that produce channels.
        ranking_groups: Channel groups that are ranked together.
        score: Importance score of the channels.
        round_to: Number that the kept channels of each layer are a multiple of.
    """

    def __init__(
        self,
        constraint: MaskConstraint,
        ranking_groups: Sequence[ChannelRankingGroup],
        score: Score,
        *,
        round_to: int = 1,
    ) -> None:
        super().__init__(constraint, ranking_groups, score, probe_score(score, channels=True))
        self.round_to = round_to

    @override
    def _prune(self, sparsities: Sequence[float], step: int) -> None:
        layers = self.constraint.layers
        masks = [layer.full(mask) for layer, mask in zip(layers, self.constraint.masks, strict=True)]
        for ranking_group, sparsity in zip(self.ranking_groups, sparsities, strict=True):
            removed = self._lowest_channels(ranking_group, sparsity, step)
            for ranked, channels in zip(ranking_group.channel_groups, removed, strict=True):
                if any(i in self.constraint.frozen for i, _ in ranked.mask_slices):
                    continue  # a channel is zero in all of its tensors, or in none
                for i, item in ranked.mask_slices:
                    masks[i].index_fill_(item.dim, item.positions_of(channels).to(masks[i].device), False)
        self.constraint.replace([layer.local(mask) for layer, mask in zip(layers, masks, strict=True)])

    @override
    def _current_sparsity(self, ranking_group: ChannelRankingGroup) -> float:
        masked = {ranked.group: self._masked_channels(ranked) for ranked in ranking_group.channel_groups}
        return 1 - ranking_group.cost.remaining(masked) / ranking_group.dense_cost

    def _lowest_channels(self, ranking_group: ChannelRankingGroup, sparsity: float, step: int) -> list[Tensor]:
        """Select the lowest channels, as few as are enough to reduce the cost by the sparsity.

        Returns:
            For each channel group, bool of shape ``(num_channels,)``.
        """
        ranked_groups = ranking_group.channel_groups
        groups = [ranked.group for ranked in ranked_groups]
        scores = [
            score_per_saving(self.score.channel_importance(ranked, self.accumulated_scores, step), saving)
            for ranked, saving in zip(ranked_groups, ranking_group.savings, strict=True)
        ]
        # Masked channels stay masked: they come first in the order.
        masked = [self._masked_channels(ranked) for ranked in ranked_groups]
        scores = [values.masked_fill(dead, -math.inf) for values, dead in zip(scores, masked, strict=True)]
        order = torch.cat(scores).argsort(stable=True)
        sizes = [group.num_channels for group in groups]
        multiples = [channel_multiple(group, self.round_to) for group in groups]

        def lowest(num_channels: int) -> list[Tensor]:
            selected = torch.zeros(len(order), dtype=torch.bool).index_fill_(0, order[:num_channels], True)
            by_group = zip(selected.split(sizes), scores, multiples, strict=True)
            return [round_selection(*arguments) for arguments in by_group]

        # The cost does not increase with the number of removed channels, so that bisection finds the fewest. The
        # tolerance is for costs that are sums of floats.
        budget = ranking_group.dense_cost * (1 - sparsity) * (1 + 1e-9)

        def fits(num_channels: int) -> bool:
            return ranking_group.cost.remaining(dict(zip(groups, lowest(num_channels), strict=True))) <= budget

        return lowest(_bisect(len(order), fits))

    def _masked_channels(self, ranked: RankedChannelGroup) -> Tensor:
        masked = torch.zeros(ranked.group.num_channels, dtype=torch.bool)
        # A channel is masked in all of its tensors; those of a block hold no other channel.
        for i, item in ranked.mask_slices if ranked.group.blocks else ranked.mask_slices[:1]:
            zeros = self.constraint.layers[i].full(self.constraint.zeros[i]).movedim(item.dim, 0)
            zero_rows = zeros.reshape(len(zeros), -1).all(dim=1).cpu()
            masked[item.channels[zero_rows[item.positions]]] = True
        return masked


def channel_multiple(group: ChannelGroup, round_to: int) -> int:
    """Return the multiple of the group's channels to keep, so that its layers keep a multiple of ``round_to``.

    One channel of the group may be several of a layer: a head, or one channel in each group of a convolution.
    """
    widths = {len(item.positions) // group.num_channels for item in group.output_slices}
    return math.lcm(*(round_to // math.gcd(round_to, width) for width in widths))


def score_per_saving(scores: Tensor, saving: Tensor) -> Tensor:
    """Divide scores by the square root of the cost that a channel saves; negative scores are multiplied.

    Of channels of equal importance, the more expensive ones are then removed first. Divided by the saving itself, the
    first layers of a CNN would lose nearly all of their channels, which are few and expensive.
    """
    unit = saving.sqrt()
    return torch.where(scores < 0, scores * unit, scores / unit)


def round_selection(selected: Tensor, scores: Tensor, multiple: int) -> Tensor:
    """Reduce a selection of channels to its lowest, so that the number of kept channels is a positive multiple.

    Args:
        selected: Channels to remove, bool of shape ``(num_channels,)``.
        scores: Their scores, of the same shape.
        multiple: Number that the kept channels are a multiple of; if there are fewer channels, all are kept.

    >>> round_selection(torch.tensor([True, True, True, False]), torch.tensor([3.0, 1.0, 2.0, 4.0]), 2)
    tensor([False,  True,  True, False])
    """
    kept = max(len(selected) - int(selected.sum()), 1)
    wanted = min(-(-kept // multiple) * multiple, len(selected))
    order = scores.argsort(stable=True)
    return torch.zeros_like(selected).index_fill_(0, order[: len(selected) - wanted], True)


def minimum_cost(groups: Sequence[ChannelGroup], cost: Cost, round_to: int) -> float:
    """Return the cost with as few channels of each group as can be kept."""
    removed: dict[ChannelGroup, Tensor] = {}
    for group in groups:
        scores = torch.arange(group.num_channels)
        everything = torch.ones_like(scores, dtype=torch.bool)
        removed[group] = round_selection(everything, scores, channel_multiple(group, round_to))
    return cost.remaining(removed)


def _bisect(stop: int, holds: Callable[[int], bool]) -> int:
    """Return the least number up to ``stop`` for which a monotone predicate holds; ``stop`` if there is none."""
    start = 0
    while start < stop:
        middle = (start + stop) // 2
        if holds(middle):
            stop = middle
        else:
            start = middle + 1
    return stop
