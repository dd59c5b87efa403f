from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc


class Auxiliary(nn.Module):
    """Has a second output in training, with a norm of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU())
        self.head = nn.Linear(16, 3)
        self.extra = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Any:
        h = self.stem(x)
        return (self.head(h), self.extra(h)) if self.training else self.head(h)


class Detector(nn.Module):
    """Returns losses in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU()), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        logits = self.head(self.stem(x))
        return {"loss": nn.functional.cross_entropy(logits, y)} if self.training else logits


TECHNIQUES = {
    "QAT": lambda: lc.QuantizationAwareTraining(),
    "Channels": lambda: lc.Pruning(0.5, pattern=lc.Channels()),
    "recalibrate": lambda: lc.Pruning(0.5, recalibrate=2),
    "SNIP": lambda: lc.Pruning(0.5, score=lc.SNIP()),
}


@pytest.mark.parametrize("technique", TECHNIQUES.values(), ids=TECHNIQUES)
@pytest.mark.parametrize("network", [Auxiliary, Detector])
def test_networks_that_answer_otherwise_in_training(
    small: type, trainer: Callable, loader: DataLoader, technique: Callable, network: type
) -> None:
    class Trained(small):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            if network is Detector:
                return sum(self.net(*batch).values())
            return sum(nn.functional.cross_entropy(out, batch[1]) for out in self.net(batch[0]))

    module, callback = Trained(), technique()
    trainer(callback, max_epochs=1).fit(module, loader)
    assert callback.num_changes >= 1
    if isinstance(callback, lc.QuantizationAwareTraining):
        # The auxiliary head is not deployed.
        quantized = {name.split(".")[1] for name, _ in module.named_buffers() if "quant_" in name}
        assert quantized == {"stem", "head"}


def test_a_norm_that_is_called_in_training_only_keeps_its_statistics(
    small: type, trainer: Callable, loader: DataLoader
) -> None:
    class Tolerant(small):
        def __init__(self) -> None:
            super().__init__()
            self.net = Auxiliary()

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            out = self.net(batch[0])
            return nn.functional.cross_entropy(out[0] if isinstance(out, tuple) else out, batch[1])

    module = Tolerant()
    once = lc.Schedule(begin=12, end=12, every=1, curve="one_shot")
    trainer(lc.Pruning(0.5, recalibrate=2, schedule=once)).fit(module, loader)
    assert (module.net.extra[0].running_mean != 0).any()


@pytest.mark.parametrize("technique", [TECHNIQUES["QAT"], TECHNIQUES["Channels"]], ids=["QAT", "Channels"])
def test_steps_that_need_an_earlier_hook_or_the_full_batch(
    small: type, trainer: Callable, loader: DataLoader, technique: Callable
) -> None:
    class Prepared(small):
        def setup(self, stage: str) -> None:
            self.weight_of_loss = 2.0

        def on_train_epoch_start(self) -> None:
            self.num_seen = 0

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            self.num_seen += len(batch[0].view(4, 8))  # of this size only
            return self.weight_of_loss * super().training_step(batch, batch_idx)

    trainer(technique(), max_epochs=1).fit(Prepared(), loader)


def test_a_model_that_is_rebuilt_after_it_was_traced(small: type, trainer: Callable, loader: DataLoader) -> None:
    class Rebuilt(small):
        def setup(self, stage: str) -> None:
            self.net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    with pytest.raises(ValueError, match="before the LightningModule's setup and configure_model: build"):
        trainer(TECHNIQUES["Channels"]()).fit(Rebuilt(), loader)


def test_a_step_that_fails_is_described(small: type, trainer: Callable, loader: DataLoader) -> None:
    class Broken(small):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            raise RuntimeError("no such thing\nand more")

    with pytest.raises(
        ValueError, match=r"step before the fit failed \(RuntimeError: no such thing\): give"
    ):
        trainer(TECHNIQUES["Channels"]()).fit(Broken(), loader)
    assert torch.is_grad_enabled()
