"""Ranges that are not finite are found at once on a CPU, and on a GPU within some batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

import lightning_compress as lc
from lightning_compress.quantization import finite_ranges
from lightning_compress.quantization.finite_ranges import FiniteRanges
from tests.cases import Loader, Net, trainer

NAMES = ["first", "second"]
GOOD = torch.tensor([[0.0, 1.0]])
BAD = torch.tensor([[0.0, 1.0], [0.0, torch.nan]])


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite_ranges, "_interval", lambda ranges: 3)


def test_on_a_cpu_a_range_is_checked_at_once() -> None:
    check = FiniteRanges()
    check.add(NAMES, [GOOD, GOOD])
    with pytest.raises(ValueError, match="NaN or infinity observed at 'second'"):
        check.add(NAMES, [GOOD, BAD])


@pytest.mark.usefixtures("as_on_a_gpu")
def test_on_a_gpu_the_first_batch_and_its_first_quantizer_are_named() -> None:
    check = FiniteRanges()
    check.add(NAMES, [GOOD, GOOD])
    check.add(NAMES, [GOOD, BAD])
    with pytest.raises(ValueError, match="observed at 'second'"):
        check.add(NAMES, [BAD, BAD])
    check.add(NAMES, [GOOD, GOOD])
    check.check()
    check.add([], [])
    check.check()


class Poison(Callback):
    """Makes a batch infinite."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, run: Trainer, model: LightningModule, batch: list[Tensor], batch_idx: int) -> None:
        if run.global_step == self.step:
            batch[0].fill_(torch.inf)


class Save(Callback):
    """Saves a checkpoint after a step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
        if run.global_step == self.step:
            run.save_checkpoint(self.path)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(("step", "until"), [(0, 1), (1, 3), (9, 10)])
def test_a_fit_on_a_gpu_ends_within_some_batches(step: int, until: int) -> None:
    """The first batch is checked before the model is trained on it, and the last ones at the end."""
    qat = lc.QuantizationAwareTraining(schedule=lc.QATSchedule(freeze_observers=1.0))
    run = trainer([Poison(step), qat])
    with pytest.raises(ValueError, match="NaN or infinity observed at"):
        run.fit(Net(), Loader())
    assert run.global_step <= until


@pytest.mark.usefixtures("as_on_a_gpu")
def test_no_checkpoint_holds_ranges_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "model.ckpt"
    with pytest.raises(ValueError, match="NaN or infinity observed at"):
        trainer([Poison(3), lc.QuantizationAwareTraining(), Save(4, path)]).fit(Net(), Loader())
    assert not path.exists()
