from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.channels.costs import Cost, NumChannels, TensorSizes, parameter_factors
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import ChannelGroup, named_tensors
from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.pruning.channel_pruner import (
    ChannelPruner,
    ChannelRankingGroup,
    channel_multiple,
    minimum_cost,
    round_selection,
    score_per_saving,
)
from lightning_compress.pruning.ranked_channel_group import RankedChannelGroup, attach_weights
from lightning_compress.pruning.scores import Score
from tests.channels.nets import SOUND, images, trained


def make(
    name: str, sparsity: float, score: Score = lc.Magnitude(), *, round_to: int = 1, counts_parameters: bool = False
) -> tuple[nn.Module, list[ChannelGroup], ChannelPruner]:
    net = trained(SOUND[name])
    groups, _ = find_groups(net, (images(),), {})
    tensors = dict(net.named_parameters())
    names = dict.fromkeys(item.tensor for group in groups for item in group.output_slices)
    layers = [Layer(name, tensors[name]) for name in names]
    members = attach_weights(groups, tensors, layers, "")
    cost: Cost = TensorSizes(net, groups, parameter_factors(net)) if counts_parameters else NumChannels(groups)
    ranking_group = ChannelRankingGroup(tuple(members), sparsity, cost)
    return net, groups, ChannelPruner(MaskConstraint(layers), [ranking_group], score, round_to=round_to)


def numbers(net: nn.Module, groups: Sequence[ChannelGroup]) -> dict[str, int]:
    return {group.name: int(group.dead(named_tensors(net)).sum()) for group in groups}


@pytest.mark.parametrize("name", SOUND)
def test_half_of_the_channels(name: str) -> None:
    net, groups, pruner = make(name, 0.5)
    pruner.update(lambda sparsity: sparsity, step=0)
    total = sum(group.num_channels for group in groups)
    assert sum(numbers(net, groups).values()) == -(-total // 2)
    assert all(num < group.num_channels for group, num in zip(groups, numbers(net, groups).values(), strict=True))
    small, _ = lc.shrink(net, images())
    torch.testing.assert_close(small(images(3)), net(images(3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SOUND)
def test_as_few_as_it_takes_to_lose_a_part_of_the_parameters(name: str) -> None:
    net, groups, pruner = make(name, 0.4, counts_parameters=True)
    dense = sum(p.numel() for p in net.parameters())
    pruner.update(lambda sparsity: sparsity, step=0)
    small, _ = lc.shrink(net, images())
    left = sum(p.numel() for p in small.parameters())
    largest = max(
        sum(item.positions_of(torch.arange(g.num_channels) == 0).numel() * 40 for item in g.slices) for g in groups
    )
    assert 0.6 * dense - largest <= left <= 0.6 * dense


def test_a_group_that_has_lost_channels_is_measured_as_before() -> None:
    _, _, pruner = make("residual", 0.0)
    ranked = pruner.ranking_groups[0].channel_groups[0]
    scores = torch.tensor([0.1, 0.1, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    lost = scores.clone()
    lost[:2] = 0.0
    assert torch.equal(ranked.normalize(lost)[2:], ranked.normalize(scores)[2:])
    assert not ranked.normalize(lost)[:2].any()


def test_a_channel_is_worth_more_the_fewer_are_left() -> None:
    _, _, pruner = make("residual", 0.0)
    ranked = pruner.ranking_groups[0].channel_groups[0]
    alike = ranked.normalize(torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(alike, torch.tensor([6.0, 3.0, 2.0, 1.5, 1.2, 1.0], dtype=torch.float64))


def test_the_lowest_channel_over_all_slices_is_pruned_first() -> None:
    net, groups, pruner = make("residual", 1 / 24)
    stream = next(group for group in groups if group.num_channels == 8)
    for item in (*stream.output_slices, *stream.input_slices):
        named_tensors(net)[item.tensor].data.index_fill_(item.dim, item.positions_of(torch.arange(8) == 3), 1e-3)
    pruner.update(lambda sparsity: sparsity, step=0)
    assert stream.dead(named_tensors(net)).tolist() == [channel == 3 for channel in range(8)]
    assert sum(numbers(net, groups).values()) == 1


class Ranked(lc.Random):
    """1.5, 2.5 and so on for the channels of each group."""

    def channel_importance(
        self, ranked: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int
    ) -> Tensor:
        return torch.arange(ranked.group.num_channels, dtype=torch.float64) + 1.5


class Priced(Cost):
    """A cost in which each group's channels have a price."""

    def __init__(self, prices: dict[ChannelGroup, float]) -> None:
        self.prices = prices

    def remaining(self, removed: Mapping[ChannelGroup, Tensor]) -> float:
        return sum(price * int((~removed[group]).sum()) for group, price in self.prices.items())


def test_of_equal_scores_the_more_expensive_channels_are_pruned() -> None:
    net, groups, pruner = make("concatenated", 0.0)
    prices = {"left": 1.0, "right": 16.0}  # the scores of the second group count a quarter
    cost = Priced({group: prices[group.name] for group in groups})
    ranking_group = ChannelRankingGroup(pruner.ranking_groups[0].channel_groups, 0.5, cost)
    assert sorted(float(saved.unique()) for saved in ranking_group.savings) == [1.0, 16.0]
    ChannelPruner(pruner.constraint, [ranking_group], Ranked()).update(lambda sparsity: sparsity, step=0)
    assert numbers(net, groups) == {"left": 0, "right": 4}


def test_the_dearer_of_equal_scores_is_lower_below_zero_too() -> None:
    scores = torch.tensor([-2.0, -1.0, 1.0, 2.0], dtype=torch.float64)
    assert bool((score_per_saving(scores, torch.tensor(4.0)) < score_per_saving(scores, torch.tensor(1.0))).all())
    assert score_per_saving(scores, torch.tensor(4.0)).tolist() == [-4.0, -2.0, 0.5, 1.0]


def test_input_slices_are_scored_too() -> None:
    net, groups, pruner = make("concatenated", 1 / 10)
    for item in next(group for group in groups if group.name == "right").input_slices:
        named_tensors(net)[item.tensor].data[:, item.positions_of(torch.arange(6) == 2)] = 0.0
    pruner.update(lambda sparsity: sparsity, step=0)
    assert numbers(net, groups) == {"left": 0, "right": 1}


@pytest.mark.parametrize("score", [lc.Magnitude(2), lc.LAMP(), lc.FPGM(), lc.Random()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("name", SOUND)
def test_every_score_ranks_every_network(name: str, score: Score) -> None:
    net, groups, pruner = make(name, 0.5, score)
    pruner.update(lambda sparsity: sparsity, step=0)
    assert sum(numbers(net, groups).values()) == -(-sum(group.num_channels for group in groups) // 2)


def test_filters_near_the_others_go_first() -> None:
    net, groups, pruner = make("flattened", 0.0, lc.FPGM())
    conv = next(group for group in groups if group.name == "conv")
    weight = named_tensors(net)["conv.weight"].data
    weight[0], weight[1], weight[2], weight[3] = 5.0, 5.1, 5.2, 0.1
    (ranked,) = [member for member in pruner.ranking_groups[0].channel_groups if member.group is conv]
    scores = lc.FPGM().channel_importance(ranked, {}, 0)
    assert scores.argmax() == 3, "unlike all others, small as it is"


def test_scales_of_norms() -> None:
    net, _, pruner = make("residual", 0.0)
    stream = next(member for member in pruner.ranking_groups[0].channel_groups if member.group.num_channels == 8)
    scales = torch.stack([net.blocks[i].norm2.weight.detach() for i in (0, 1)]).mean(dim=0)
    torch.testing.assert_close(lc.BNScale().channel_importance(stream, {}, 0), scales.double())
    _, _, other = make("squeeze", 0.0)
    with pytest.raises(ValueError, match="no batch norm scales the channels of"):
        lc.BNScale().channel_importance(other.ranking_groups[0].channel_groups[0], {}, 0)


@given(
    parts=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    name=st.sampled_from(["residual", "grouped", "ghost", "concatenated"]),
    round_to=st.sampled_from([1, 2, 4]),
)
@settings(max_examples=40, deadline=None)
def test_what_is_gone_stays_gone(parts: list[float], name: str, round_to: int) -> None:
    net, groups, pruner = make(name, 0.6, lc.Random(), round_to=round_to)
    before = {group: torch.zeros(group.num_channels, dtype=torch.bool) for group in groups}
    for step, part in enumerate(parts):
        pruner.update(lambda sparsity, part=part: sparsity * part, step=step)
        for group in groups:
            dead = group.dead(named_tensors(net))
            assert bool((dead | ~before[group]).all())
            assert not bool(dead.all())
            kept = group.num_channels - int(dead.sum())
            assert kept % channel_multiple(group, round_to) == 0 or kept == group.num_channels
            before[group] = dead


def test_a_multiple_of_what_layers_have() -> None:
    heads = find_groups(trained(SOUND["transformer"]), (images(),), {})[0]
    attention = next(group for group in heads if group.name == "blocks.0.attn")
    assert channel_multiple(attention, 8) == 2  # a head is 12 rows of qkv
    grouped = find_groups(trained(SOUND["grouped"]), (images(),), {})[0]
    assert [channel_multiple(group, 6) for group in grouped] == [2, 2]  # three channels of each layer
    (ghost,) = find_groups(trained(SOUND["ghost"]), (images(),), {})[0]
    assert channel_multiple(ghost, 4) == 4  # two channels of one layer, one of another


@pytest.mark.parametrize(("step", "kept"), [(1, 3), (2, 4), (4, 4), (8, 8), (16, 8)])
def test_rounded_up(step: int, kept: int) -> None:
    chosen = torch.arange(8) < 5
    assert round_selection(chosen, torch.arange(8.0), step).tolist() == [i < 8 - kept for i in range(8)]


def test_the_least_that_can_be_left() -> None:
    _, groups, _ = make("residual", 0.0)
    assert minimum_cost(groups, NumChannels(groups), 1) == 3
    assert minimum_cost(groups, NumChannels(groups), 4) == 12
