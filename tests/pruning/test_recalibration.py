from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import lightning_compress as lc
from lightning_compress.pruning.recalibration import _batches


class Spy(Callback):
    """The state around the only update of the masks, made after step 3."""

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.expected: tuple[Tensor, Tensor] | None = None
        self.found: tuple[Tensor, Tensor] | None = None
        self.random: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step != 3:
            return
        norm, before = pl_module.net[1], copy.deepcopy(pl_module.net[0]).eval()
        self.found = norm.running_mean.clone(), norm.running_var.clone()
        batches = torch.stack([before(x) for x, _ in self._batches(trainer)])
        self.expected = batches.mean(1).mean(0), batches.var(1).mean(0)

    def _batches(self, trainer: Trainer) -> list[Any]:
        with torch.random.fork_rng():
            return list(_batches(trainer, self.num_batches, seed=3))


def fit(small: type, trainer: Callable, loader: Any, recalibrate: int | None, *callbacks: Callback) -> Any:
    module = small()
    pruning = lc.Pruning(0.5, schedule=lc.Schedule(begin=3, curve="one_shot"), recalibrate=recalibrate)
    fit = trainer(pruning, *callbacks)
    fit.fit(module, loader)
    return module


def test_statistics_are_the_plain_mean_over_the_batches(small: type, trainer: Callable, loader: DataLoader) -> None:
    spy = Spy(num_batches=4)
    fit(small, trainer, loader, 4, spy)
    for found, expected in zip(spy.found, spy.expected, strict=True):
        torch.testing.assert_close(found, expected)


def test_dropout_before_a_norm_is_as_it_is_in_use(small: type, trainer: Callable, loader: DataLoader) -> None:
    class Dropped(small):
        def __init__(self) -> None:
            super().__init__()
            self.net[0] = nn.Sequential(self.net[0], nn.Dropout(0.5))

    spy = Spy(num_batches=4)
    fit(Dropped, trainer, loader, 4, spy)
    for found, expected in zip(spy.found, spy.expected, strict=True):
        torch.testing.assert_close(found, expected)


def test_without_it_statistics_are_those_of_training(small: type, trainer: Callable, loader: DataLoader) -> None:
    spy = Spy(num_batches=4)
    fit(small, trainer, loader, None, spy)
    assert not torch.allclose(spy.found[0], spy.expected[0])


def test_batches_are_drawn_from_all_the_data_without_repetition(
    small: type, trainer: Callable, loader: DataLoader
) -> None:
    class GraphTracer(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
            rows = torch.cat([x for x, _ in _batches(trainer, 5, seed=1)])
            assert rows.shape == (20, 8)
            assert len(rows.unique(dim=0)) == 20
            again = torch.cat([x for x, _ in _batches(trainer, 5, seed=1)])
            assert torch.equal(rows, again)
            other = torch.cat([x for x, _ in _batches(trainer, 5, seed=2)])
            assert not torch.equal(rows, other)
            assert sum(len(x) for x, _ in _batches(trainer, 100, seed=1)) == 24

    trainer(GraphTracer(), max_steps=1, max_epochs=-1).fit(small(), loader)


def test_it_leaves_no_other_trace(small: type, trainer: Callable, loader: DataLoader) -> None:
    def run(recalibrate: int | None) -> tuple[Any, Tensor]:
        class Dropped(small):
            def __init__(self) -> None:
                super().__init__()
                self.net.insert(3, nn.Dropout(0.5))
                self.calls = 0

            def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
                self.calls += 1
                return super().training_step(batch, batch_idx)

        torch.manual_seed(1)
        module = fit(Dropped, trainer, loader, recalibrate)
        return module, torch.get_rng_state()

    (plain, random), (recalibrated, other_random) = run(None), run(6)
    # Training goes on from the same weights with the same noise: statistics are not read in training.
    assert torch.equal(random, other_random)
    for name, value in plain.named_parameters():
        assert torch.equal(value, recalibrated.get_parameter(name)), name
    assert plain.calls == recalibrated.calls == 12
    assert plain.net[1].num_batches_tracked == recalibrated.net[1].num_batches_tracked == 12
    assert recalibrated.net[1].momentum == 0.1
    assert not torch.equal(plain.net[1].running_mean, recalibrated.net[1].running_mean)


def test_data_without_an_index_is_refused(small: type, trainer: Callable) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter([(torch.zeros(8), torch.tensor(0))] * 8)

    schedule = lc.Schedule(begin=0, end=2, every=1)
    with pytest.raises(ValueError, match="map-style dataset"):
        trainer(lc.Pruning(0.5, schedule=schedule, recalibrate=2)).fit(small(), DataLoader(Stream(), batch_size=4))
