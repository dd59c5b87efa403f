"""Checkpoints at a URL that fsspec opens."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import lightning_compress as lc
from tests.cases import Loader, Net, trainer


def callbacks() -> list[Any]:
    pruning = lc.Pruning(0.5, schedule=lc.Schedule(0.0, 0.5))
    return [pruning, lc.WeightClustering(8, schedule=lc.Schedule(0.5, 0.9)), lc.QuantizationAwareTraining()]


def test_a_fit_that_goes_on_from_a_url_equals_an_uninterrupted_one() -> None:
    whole, rest = Net(), Net()
    keep = ModelCheckpoint("memory://checkpoints", filename="{step}", every_n_train_steps=4, save_top_k=-1)
    trainer([*callbacks(), keep], enable_checkpointing=True).fit(whole, Loader())
    trainer(callbacks()).fit(rest, Loader(), ckpt_path="memory://checkpoints/step=4.ckpt")
    assert whole.state_dict().keys() == rest.state_dict().keys()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name
