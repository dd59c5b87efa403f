from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_compress.channels.costs import Latency, NumChannels, TensorSizes, mac_factors, parameter_factors
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import ChannelGroup
from lightning_compress.channels.remove import remove_
from lightning_compress.profiling import count_macs
from tests.channels.nets import SOUND, images, trained

CONVOLUTIONS = [name for name in SOUND if name != "transformer"]


def some(groups: list[ChannelGroup], fraction: float) -> dict[ChannelGroup, Tensor]:
    generator = torch.Generator().manual_seed(1)
    removed = {g: torch.rand(g.num_channels, generator=generator) < fraction for g in groups}
    return {g: channels & (torch.arange(len(channels)) > 0) for g, channels in removed.items()}


def multiplied(net: nn.Module) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(images(1))
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("name", SOUND)
def test_parameters_are_those_of_the_smaller_network(name: str, fraction: float) -> None:
    net = trained(SOUND[name])
    groups, _ = find_groups(net, (images(),), {})
    removed = some(groups, fraction)
    small = copy.deepcopy(net)
    remove_(small, removed)
    assert TensorSizes(net, groups, parameter_factors(net)).remaining(removed) == sum(
        p.numel() for p in small.parameters()
    )


@pytest.mark.parametrize("fraction", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_multiplications_are_those_that_torch_counts(name: str, fraction: float) -> None:
    net = trained(SOUND[name])
    groups, _ = find_groups(net, (images(),), {})
    removed = some(groups, fraction)
    small = copy.deepcopy(net)
    remove_(small, removed)
    cost = TensorSizes(net, groups, mac_factors(net, (images(1),), {}))
    assert cost.remaining(removed) == pytest.approx(multiplied(small))


def test_channels_of_some_groups() -> None:
    net = trained(SOUND["residual"])
    groups, _ = find_groups(net, (images(),), {})
    removed = {g: torch.arange(g.num_channels) < 2 for g in groups}
    assert NumChannels(groups).remaining(removed) == 6 + 8 + 10 - 3 * 2
    assert NumChannels(groups[:1]).remaining(removed) == groups[0].num_channels - 2


@pytest.mark.parametrize("name", SOUND)
def test_factors_sum_to_the_multiplications_by_weights(name: str) -> None:
    net = trained(SOUND[name])
    tensors, counts = dict(net.named_parameters()), count_macs(net, images(1))
    factors = mac_factors(net, (images(1),), {})
    assert sum(factor * tensors[name].numel() for name, factor in factors.items()) == counts.total - counts.activations
    assert (counts.activations > 0) == (name == "transformer")


class Clock(nn.ReLU):
    """Advances a clock by a second for each channel of each image."""

    now = 0.0

    def forward(self, x: Tensor) -> Tensor:
        Clock.now += x.shape[0] * x.shape[1]
        return super().forward(x)


def test_time_is_measured_on_what_is_left() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 1), Clock(), nn.Conv2d(16, 8, 1), Clock(), nn.Conv2d(8, 2, 1))
    groups, _ = find_groups(net, (images(),), {})
    cost = Latency(net, (images(),), {}, timer=lambda: Clock.now)
    assert cost.remaining({g: torch.zeros(g.num_channels, dtype=torch.bool) for g in groups}) == 2 * (16 + 8)
    assert cost.remaining({g: torch.arange(g.num_channels) > 3 for g in groups}) == 2 * (4 + 4)
    assert net[0].out_channels == 16
