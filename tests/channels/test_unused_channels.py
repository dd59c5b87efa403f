"""Channels that only zero weights read."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from tests.channels.nets import SOUND, images, trained


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(8, 12), nn.Linear(12, 10), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.second(self.first(x).relu()).relu())


def test_channels_without_readers_are_removed_back_to_the_first_layer() -> None:
    net, inputs = Perceptron(), torch.randn(5, 8)
    with torch.no_grad():
        net.last.weight[:, :4] = 0
        net.second.weight[4:, 6:] = 0  # the last six units of the first layer feed the first four of the second alone
    small, log = lc.shrink(net, inputs)
    assert [small.first.out_features, small.second.out_features] == [6, 6]
    torch.testing.assert_close(small(inputs), net(inputs))
    fresh = Perceptron()
    log.replay_(fresh)
    fresh.load_state_dict(small.state_dict())
    assert torch.equal(fresh(inputs), small(inputs))


def test_a_layer_that_nothing_reads_keeps_a_channel() -> None:
    net, inputs = Perceptron(), torch.randn(5, 8)
    nn.init.zeros_(net.last.weight)
    small, _ = lc.shrink(net, inputs)
    assert [small.first.out_features, small.second.out_features] == [1, 1]
    torch.testing.assert_close(small(inputs), net(inputs))


class Read(Perceptron):
    """Its hidden units are read by a weight, and by their own maximum."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        return self.last(self.second(hidden).relu()) + (hidden * hidden).sum(dim=1, keepdim=True)


def test_channels_that_something_else_reads_stay() -> None:
    net, inputs = Read(), torch.randn(5, 8)
    with torch.no_grad():
        net.second.weight[:, :6] = 0
        net.last.weight[:, :4] = 0
    small, _ = lc.shrink(net, inputs)
    assert [small.first.out_features, small.second.out_features] == [12, 6]
    torch.testing.assert_close(small(inputs), net(inputs))


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_sparse_networks_compute_the_same(make: type[nn.Module]) -> None:
    net, generator = trained(make), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.ndim > 1:  # a third of the rows or columns, as no single weight is zero by chance
                dim = int(torch.randint(2, (), generator=generator))
                zeros = torch.rand(parameter.shape[dim], generator=generator) < 0.3
                parameter.index_fill_(dim, zeros.nonzero().flatten(), 0.0)
    small, _ = lc.shrink(net, images())
    torch.testing.assert_close(small(images(5)), net(images(5)), rtol=1e-5, atol=1e-6)
