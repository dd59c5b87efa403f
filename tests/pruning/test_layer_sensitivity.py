"""Delta losses of layers that are pruned one at a time."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_compress.pruning.layer_sensitivity import pruning_sensitivity


def test_each_layer_is_pruned_alone_and_restored():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    saved = [p.clone() for p in net.parameters()]
    batches = [torch.randn(8, 4)]

    def loss(model, batch):
        return model(batch).square().mean()

    found = pruning_sensitivity(net, batches, loss=loss, sparsities=(0.9, 0.25))
    assert [layer.layer for layer in found.layers] == ["0", "1"]
    assert list(found.layers[0].delta_losses) == ["25 %", "90 %"]
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), saved, strict=True))
    # The smallest of the four weights of the last layer, by hand.
    with torch.no_grad():
        dense = float(loss(net, batches[0]))
        net[1].weight[0, net[1].weight.abs().argmin()] = 0
        assert found.loss == pytest.approx(dense)
        assert found.layers[1].delta_losses["25 %"] == pytest.approx(float(loss(net, batches[0])) - dense)


@pytest.mark.parametrize(
    ("sparsities", "batches", "message"),
    [((1.0,), [1], "must lie in"), ((), [1], "no sparsity"), ((0.5,), [], "no batch")],
)
def test_mistakes(sparsities, batches, message):
    with pytest.raises(ValueError, match=message):
        pruning_sensitivity(nn.Linear(2, 1), batches, loss=lambda model, batch: batch, sparsities=sparsities)
