from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.clustering.soft_weights import harden, soften


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed((x.abs() * 3).long().clamp(max=9))
        return self.head(self.lstm(tokens)[0][:, -1])


def fit(small: type, trainer: Callable, loader: DataLoader, net: nn.Module, callback: Any) -> Any:
    module = small()
    module.net = net
    trainer(callback).fit(module, loader)
    return module


def test_recurrent_layers_are_pruned_and_the_rest_is_named(
    small: type, trainer: Callable, loader: DataLoader, caplog: Any
) -> None:
    logging.getLogger("lightning.pytorch").propagate = True
    with caplog.at_level(logging.INFO), pytest.warns(UserWarning, match=r"rest is in Embedding \(13\.0%: 'net\.embed"):
        module = fit(small, trainer, loader, Tagger(), lc.Pruning(0.9))
    report = lc.report(module)
    assert report.weights.num_weights == 2 * 32 * 8 + 24
    assert report.rest.num_weights == 80
    assert report.weights.sparsity == pytest.approx(0.9, abs=0.01)
    assert all((p == 0).float().mean() > 0.5 for n, p in module.net.lstm.named_parameters() if "weight" in n)


@pytest.mark.parametrize(
    ("targets", "freeze", "match"),
    [
        (lc.Targets(), "embed", r"frozen layers \(13\.0%: 'net\.embed"),
        (lc.Targets(), "lstm", r"frozen layers \(83\.1%: 'net\.lstm\.weight_"),
    ],
)
def test_frozen_layers_are_named(
    small: type, trainer: Callable, loader: DataLoader, targets: lc.Targets, freeze: str, match: str
) -> None:
    net = Tagger()
    getattr(net, freeze).requires_grad_(False)
    with pytest.warns(UserWarning, match=match):
        fit(small, trainer, loader, net, lc.Pruning(0.5, targets=targets))


@pytest.mark.parametrize(
    "callback",
    [
        lc.Pruning(0.5, targets=lc.Targets(exclude=("net.0",))),
        lc.Pruning(0.5, targets=lc.Targets(include=("net.3",))),
        lc.WeightClustering({"net.0": 2}),
    ],
)
def test_what_the_user_leaves_out_is_no_cause_for_a_warning(
    small: type, trainer: Callable, loader: DataLoader, callback: Any, recwarn: Any
) -> None:
    fit(small, trainer, loader, small().net, callback)
    assert not [w for w in recwarn if "most of the rest" in str(w.message)]


def test_soft_clusters_reach_recurrent_layers(small: type, trainer: Callable, loader: DataLoader) -> None:
    lstm = nn.LSTM(4, 4)
    x, before = torch.randn(3, 2, 4), lstm(torch.ones(3, 2, 4))[0]
    soften(lstm, "weight_hh_l0", lambda weight: weight * 0)  # type: ignore[arg-type]
    soft = lstm(x)[0]
    harden(lstm)
    assert not torch.allclose(soft, lstm(x)[0])
    assert torch.equal(before, lstm(torch.ones(3, 2, 4))[0])
