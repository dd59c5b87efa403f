from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.trainer.model_selection import ModelSelection


def test_what_chooses_by_a_metric_is_held_and_let_go() -> None:
    best, last, plain = ModelCheckpoint(monitor="loss"), ModelCheckpoint(), pl.Callback()
    stopping = EarlyStopping("loss")
    callbacks = [best, last, stopping, plain]
    before = [dict(vars(callback)) for callback in callbacks]
    selection = ModelSelection()
    selection.suspend(SimpleNamespace(callbacks=callbacks))
    assert vars(best) != before[0]
    assert vars(last) == before[1]
    assert stopping._should_skip_check(None)
    selection.resume()
    assert [dict(vars(callback)) for callback in callbacks] == before
    selection.resume()
    assert [dict(vars(callback)) for callback in callbacks] == before


def test_to_hold_twice_is_to_hold_once() -> None:
    best = ModelCheckpoint(monitor="loss")
    before = dict(vars(best))
    selection = ModelSelection()
    for _ in range(2):
        selection.suspend(SimpleNamespace(callbacks=[best]))
    selection.resume()
    assert vars(best) == before


def test_what_stood_in_the_way_before_is_put_back() -> None:
    stopping = EarlyStopping("loss")
    stopping._should_skip_check = mine = lambda trainer: False
    selection = ModelSelection()
    selection.suspend(SimpleNamespace(callbacks=[stopping]))
    assert stopping._should_skip_check(None)
    selection.resume()
    assert stopping._should_skip_check is mine


def test_callbacks_of_the_other_namespace_are_held_too() -> None:
    best = pytorch_lightning.callbacks.ModelCheckpoint(monitor="loss")
    stopping = pytorch_lightning.callbacks.EarlyStopping("loss")
    before = dict(vars(best))
    selection = ModelSelection()
    selection.suspend(SimpleNamespace(callbacks=[best, stopping]))
    assert vars(best) != before
    assert stopping._should_skip_check(None)
    selection.resume()
    assert vars(best) == before


class Worse(pl.Callback):
    """Makes every epoch look worse than the one before."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.log("loss", float(trainer.current_epoch))


@pytest.mark.parametrize(("end", "first"), [("1ep", 0), ("3ep", 2), ("4ep", 3)])
def test_the_best_is_the_best_since_the_target(
    small: type, loader: DataLoader, trainer: Any, tmp_path: Path, end: str, first: int
) -> None:
    best = ModelCheckpoint(tmp_path, monitor="loss", filename="{epoch}", save_last=True)
    pruning = lc.Pruning(0.5, schedule=lc.Schedule(end=end, every="1ep"))
    trainer(pruning, Worse(), best, max_epochs=4, enable_checkpointing=True).fit(small(), loader)
    assert Path(best.best_model_path).name == f"epoch={first}.ckpt"
    assert float(best.best_model_score) == first
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"epoch={first}.ckpt", "last.ckpt"]


def test_early_stopping_counts_from_the_target_on(small: type, loader: DataLoader, trainer: Any) -> None:
    stopping = EarlyStopping("loss", patience=2, check_on_train_epoch_end=True)
    pruning = lc.Pruning(0.5, schedule=lc.Schedule(end="5ep", every="1ep"))
    fit = trainer(pruning, Worse(), stopping, max_epochs=20)
    fit.fit(small(), loader)
    # The first check, at the end of the fifth epoch, is the best; then two that are worse.
    assert stopping.stopped_epoch == 6
    assert "_should_skip_check" not in vars(stopping)
