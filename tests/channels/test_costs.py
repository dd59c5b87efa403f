from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_compress.channels.costs import Latency, NumChannels, TensorSizes, macs, parameters
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import ChannelGroup
from lightning_compress.channels.remove import remove_
from tests.channels.nets import SOUND, images, trained

CONVOLUTIONS = [name for name in SOUND if name != "transformer"]


def some(groups: list[ChannelGroup], part: float) -> dict[ChannelGroup, Tensor]:
    generator = torch.Generator().manual_seed(1)
    gone = {g: torch.rand(g.num_channels, generator=generator) < part for g in groups}
    return {g: channels & (torch.arange(len(channels)) > 0) for g, channels in gone.items()}


def multiplied(net: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images(1))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("part", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("name", SOUND)
def test_parameters_are_those_of_the_smaller_network(name: str, part: float) -> None:
    net = trained(SOUND[name])
    groups, _ = find_groups(net, (images(),), {})
    gone = some(groups, part)
    small = copy.deepcopy(net)
    remove_(small, gone)
    assert TensorSizes(net, groups, parameters(net)).left(gone) == sum(p.numel() for p in small.parameters())


@pytest.mark.parametrize("part", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_multiplications_are_those_that_torch_counts(name: str, part: float) -> None:
    net = trained(SOUND[name])
    groups, _ = find_groups(net, (images(),), {})
    gone = some(groups, part)
    small = copy.deepcopy(net)
    remove_(small, gone)
    cost = TensorSizes(net, groups, macs(net, (images(1),), {}))
    assert cost.left(gone) == pytest.approx(multiplied(small))


def test_channels_of_some_groups() -> None:
    net = trained(SOUND["residual"])
    groups, _ = find_groups(net, (images(),), {})
    gone = {g: torch.arange(g.num_channels) < 2 for g in groups}
    assert NumChannels(groups).left(gone) == 6 + 8 + 10 - 3 * 2
    assert NumChannels(groups[:1]).left(gone) == groups[0].num_channels - 2


def test_time_is_measured_on_what_is_left() -> None:
    net = nn.Sequential(nn.Conv2d(3, 256, 3), nn.ReLU(), nn.Conv2d(256, 256, 3), nn.ReLU(), nn.Conv2d(256, 2, 3))
    groups, _ = find_groups(net, (torch.randn(1, 3, 24, 24),), {})
    cost = Latency(net, (torch.randn(1, 3, 24, 24),), {})
    dense = cost.left({g: torch.zeros(g.num_channels, dtype=torch.bool) for g in groups})
    small = cost.left({g: torch.arange(g.num_channels) > 3 for g in groups})
    assert 0 < small < dense  # a fortieth, so that no clock is too coarse
    assert net[0].out_channels == 256
