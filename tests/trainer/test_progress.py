from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
from torch.utils.data import DataLoader

from lightning_compress.schedules import Progress
from lightning_compress.trainer.progress import check_time_fits, progress


class Clock(pl.Callback):
    """Asks how far the fit is, in every batch."""

    def __init__(self) -> None:
        self.starts: list[Progress] = []
        self.ends: list[Progress] = []

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.starts.append(progress(trainer, trainer.global_step, in_step=False, in_batch=False))

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.ends.append(progress(trainer, trainer.global_step, in_step=False))


def fractions(progresses: list[Progress]) -> list[float]:
    return [round(p.fraction, 6) for p in progresses]


def run(small: type, loader: DataLoader, trainer: Callable, **options: Any) -> Clock:
    clock = Clock()
    trainer(clock, **options).fit(small(), loader)
    return clock


def test_by_epochs(small: type, loader: DataLoader, trainer: Callable) -> None:
    clock = run(small, loader, trainer, max_epochs=2)
    assert fractions(clock.starts) == [round(i / 12, 6) for i in range(12)]
    assert fractions(clock.ends) == [round(i / 12, 6) for i in range(1, 13)]
    assert [p.epochs for p in clock.ends] == pytest.approx([i / 6 for i in range(1, 13)])
    assert [p.steps for p in clock.ends] == list(range(1, 13))


def test_by_steps(small: type, loader: DataLoader, trainer: Callable) -> None:
    clock = run(small, loader, trainer, max_epochs=-1, max_steps=8)
    assert fractions(clock.ends) == [i / 8 for i in range(1, 9)]


def test_whichever_comes_first(small: type, loader: DataLoader, trainer: Callable) -> None:
    assert fractions(run(small, loader, trainer, max_epochs=2, max_steps=6).ends) == [
        round(i / 6, 6) for i in range(1, 7)
    ]
    assert fractions(run(small, loader, trainer, max_epochs=1, max_steps=100).ends)[-1] == 1.0


def test_accumulated_batches_count_as_batches(small: type, loader: DataLoader, trainer: Callable) -> None:
    clock = run(small, loader, trainer, max_epochs=1, accumulate_grad_batches=4)
    assert fractions(clock.ends) == [round(i / 6, 6) for i in range(1, 7)]
    assert [p.steps for p in clock.ends] == [0, 0, 0, 1, 1, 2]


def test_an_unbounded_run_has_no_fraction(small: type, loader: DataLoader, trainer: Callable) -> None:
    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 8

    clock = Clock()
    trainer(clock, Stop(), max_epochs=-1).fit(small(), loader)
    assert {p.fraction for p in clock.ends} == {None}
    assert clock.ends[-1].epochs == pytest.approx(8 / 6)


@pytest.mark.parametrize(
    ("options", "time", "advice"),
    [
        ({"max_epochs": -1}, 0.5, "which has no end"),
        ({"max_epochs": 3}, "4ep", "beyond the run's 3 epochs"),
        ({"max_steps": 10}, 11, "beyond the run's 10 steps"),
    ],
)
def test_times_that_do_not_come(trainer: Callable, options: dict[str, Any], time: Any, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        check_time_fits(trainer(**options), "end", time)


@pytest.mark.parametrize(
    ("options", "time"),
    [({"max_epochs": 3}, 0.5), ({"max_epochs": 3}, "3ep"), ({"max_steps": 10}, 10), ({"max_epochs": -1}, 10_000)],
)
def test_times_that_come(trainer: Callable, options: dict[str, Any], time: Any) -> None:
    check_time_fits(trainer(**options), "end", time)
