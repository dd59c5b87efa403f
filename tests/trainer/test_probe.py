from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.trainer.probe import TrainingProbe

NET = lc.Targets(module="net")


class Use(pl.Callback):
    """Makes a probe in the third batch and hands it to a function."""

    def __init__(self, function: Callable[[TrainingProbe, pl.LightningModule], None], **options: Any) -> None:
        self.function = function
        self.options = options
        self.used = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == 2 and not self.used:
            self.used = True
            self.function(TrainingProbe(trainer, pl_module, batch, batch_idx, **self.options), pl_module)


def run(module: pl.LightningModule, loader: DataLoader, trainer: Callable, use: Use) -> None:
    trainer(use, max_epochs=1).fit(module, loader)
    assert use.used


def test_the_loss_is_that_of_the_training_step(small: type, loader: DataLoader, trainer: Callable) -> None:
    losses = []

    class Recorded(small):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            losses.append((batch_idx, loss.detach()))
            return loss

    found = []
    run(Recorded(), loader, trainer, Use(lambda probe, module: found.append(probe.loss())))
    assert [index for index, _ in losses] == [0, 1, 2, 2, 3, 4, 5]
    assert found[0].requires_grad
    assert torch.equal(losses[2][1], losses[3][1])


def test_the_original_is_left_alone(small: type, loader: DataLoader, trainer: Callable) -> None:
    def check(probe: TrainingProbe, module: pl.LightningModule) -> None:
        state = {name: value.clone() for name, value in module.state_dict().items()}
        gradients = [parameter.grad.clone() for parameter in module.parameters()]  # of the last step
        logged, random = dict(module.trainer.callback_metrics), torch.get_rng_state()
        probe.loss().backward()
        with torch.no_grad():
            for parameter in probe.model.parameters():
                parameter.zero_()
        assert torch.equal(torch.get_rng_state(), random)
        assert all(torch.equal(value, module.state_dict()[name]) for name, value in state.items())
        assert all(torch.equal(p.grad, old) for p, old in zip(module.parameters(), gradients, strict=True))
        assert module.trainer.callback_metrics == logged

    module = small()
    module.net.append(nn.Dropout(0.5))  # which draws numbers
    run(module, loader, trainer, Use(check))


def test_inputs_are_seen_in_a_training_step(small: type, loader: DataLoader, trainer: Callable) -> None:
    def check(probe: TrainingProbe, module: pl.LightningModule) -> None:
        (args, kwargs) = probe.inputs()
        assert len(args) == 1
        assert kwargs == {}
        assert torch.equal(args[0], probe.batch[0])

    run(small(), loader, trainer, Use(check, module="net"))


def test_a_module_that_is_not_called_as_a_whole(small: type, loader: DataLoader, trainer: Callable) -> None:
    def check(probe: TrainingProbe, module: pl.LightningModule) -> None:
        with pytest.raises(ValueError, match=r"never calls .* Targets\(module='\.\.\.'\), or give example_inputs"):
            probe.inputs()

    run(small(), loader, trainer, Use(check))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (torch.ones(2, 8), ((2, 8), None)),
        ((torch.ones(2, 8),), ((2, 8), None)),
        ({"input": torch.ones(3, 8)}, (None, (3, 8))),
    ],
)
def test_inputs_as_given(small: type, loader: DataLoader, trainer: Callable, given: Any, expected: Any) -> None:
    def check(probe: TrainingProbe, module: pl.LightningModule) -> None:
        args, kwargs = probe.inputs()
        assert (tuple(args[0].shape) if args else None) == expected[0]
        assert (tuple(kwargs["input"].shape) if kwargs else None) == expected[1]

    run(small(), loader, trainer, Use(check, module="net", example_inputs=given))


def test_the_example_of_the_module_comes_next(small: type, loader: DataLoader, trainer: Callable) -> None:
    def check(probe: TrainingProbe, module: pl.LightningModule) -> None:
        assert probe.inputs()[0][0].shape == (5, 8)

    module = small()
    module.example_input_array = torch.zeros(5, 8)
    run(module, loader, trainer, Use(check, module="net"))


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_training_step_without_a_loss(trainer: Callable, loader: DataLoader) -> None:
    class Skips(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 3)
            self.output: Any = None

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Any:
            return self.output

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def check(probe: TrainingProbe, module: pl.LightningModule) -> None:
        for probe.model.output in (None, {}, {"loss": None}):
            with pytest.raises(ValueError, match="returned no loss for this batch: return a tensor or a dict with the"):
                probe.loss()

    run(Skips(), loader, trainer, Use(check))


def test_a_loss_in_a_dict(small: type, loader: DataLoader, trainer: Callable) -> None:
    class InDict(small):
        def training_step(self, batch: list[Tensor], batch_idx: int) -> dict[str, Tensor]:
            return {"loss": super().training_step(batch, batch_idx)}

    run(InDict(), loader, trainer, Use(lambda probe, _: probe.loss().backward()))


@pytest.mark.parametrize(
    "callback",
    [
        lc.Pruning(0.5, score=lc.SNIP(), schedule=lc.Schedule(begin=0, curve="one_shot"), targets=NET),
        lc.Pruning(0.5, pattern=lc.Channels(), schedule=lc.Schedule(begin=0, curve="one_shot"), targets=NET),
        lc.QuantizationAwareTraining(targets=NET),
    ],
    ids=["SNIP", "Channels", "QAT"],
)
def test_a_training_step_without_an_index(
    small: type, loader: DataLoader, trainer: Callable, callback: pl.Callback
) -> None:
    class WithoutIndex(small):
        def training_step(self, batch: list[Tensor]) -> Tensor:
            return super().training_step(batch, 0)

    module = WithoutIndex()
    trainer(callback, max_epochs=1).fit(module, loader)
    assert callback.num_changes >= 1
