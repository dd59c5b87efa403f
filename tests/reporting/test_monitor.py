from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
import wandb
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc

NAMES = ("net.0.weight", "net.3.weight")
SIZES = (128, 48)


class ExpectedMetrics(pl.Callback):
    """Expected metrics: the sparsity after each change and after each epoch, by step."""

    def __init__(self, pruning: lc.Pruning) -> None:
        self.pruning = pruning
        self.changes: dict[int, float] = {}
        self.epochs: dict[int, float] = {}
        self._seen = 0

    def _sparsity(self, module: pl.LightningModule) -> float:
        parameters = dict(module.named_parameters())
        return sum(int((parameters[name] == 0).sum()) for name in NAMES) / sum(SIZES)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        if self.pruning.num_changes != self._seen:
            self._seen = self.pruning.num_changes
            self.changes[trainer.global_step] = self._sparsity(pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.epochs[trainer.global_step] = self._sparsity(pl_module)


@pytest.fixture
def quiet_wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    yield
    wandb.finish()


@pytest.fixture
def wandb_logger(quiet_wandb: None, tmp_path: Path) -> WandbLogger:
    return WandbLogger(offline=True, save_dir=tmp_path, project="compression")


def monotone(values: list[int]) -> bool:
    return values == sorted(values)


def wandb_command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "wandb", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, env={**os.environ})


def test_an_offline_run_is_read_back(
    small: type, loader: DataLoader, trainer: Callable, wandb_logger: WandbLogger, wandb_run: Callable, tmp_path: Path
) -> None:
    pruning = lc.Pruning(0.8, schedule=lc.Schedule(begin=3, end=10, every=2))
    watch = ExpectedMetrics(pruning)
    fit = trainer(pruning, watch, lc.CompressionMonitor(), logger=wandb_logger, max_epochs=3, log_every_n_steps=1)

    class Validated(small):
        def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
            self.log("val/loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    fit.fit(Validated(), loader, loader)
    wandb.finish()
    run = wandb_run(tmp_path)

    assert run.axes == {"trainer/global_step": "", "*": "trainer/global_step"}
    series = run.series("compression/sparsity")
    steps = [step for step, _ in series]
    assert monotone(steps)
    assert series[0] == (0, 0.0)
    # No point is lost: each change, each epoch, each layer with each total.
    assert sorted(watch.changes) == [3, 5, 7, 9, 10]
    assert set(watch.changes.items()) <= set(series)
    assert set(watch.epochs.items()) <= set(series)
    assert steps == sorted([0, *watch.changes, *watch.epochs])
    assert series[-1] == (18, round(176 * 0.8) / 176)
    layers = [run.series(f"compression/sparsity/{name}") for name in NAMES]
    for points in layers:
        assert [step for step, _ in points] == steps
    for (_, total), *parts in zip(series, *layers, strict=True):
        assert total * 176 == pytest.approx(sum(size * value for size, (_, value) in zip(SIZES, parts, strict=True)))

    # The module's own metrics are all there and on the same axis.
    assert len(run.series("train/loss")) == 18
    assert len(run.series("val/loss")) == 3
    assert monotone([step for step, _ in run.series("train/loss")])
    # W&B's own step counts calls, and ours never sets it.
    assert [row["_step"] for row in run.rows] == list(range(len(run.rows)))


def test_the_table_at_the_end(
    small: type, loader: DataLoader, trainer: Callable, wandb_logger: WandbLogger, wandb_run: Callable, tmp_path: Path
) -> None:
    module = small()
    trainer(lc.Pruning(0.5), lc.CompressionMonitor(), logger=wandb_logger).fit(module, loader)
    wandb.finish()
    run = wandb_run(tmp_path)
    (row,) = [row for row in run.rows if row.get("compression/layers/_type") == "table-file"]
    assert row["trainer/global_step"] == 12
    assert row is run.rows[-1]
    assert (row["compression/layers/nrows"], row["compression/layers/ncols"]) == (2, 4)
    table = json.loads((run.file.parent / "files" / row["compression/layers/path"]).read_text())
    assert table["columns"] == ["layer", "weights", "zeros", "sparsity"]
    zeros = [int((p == 0).sum()) for name, p in module.named_parameters() if name in NAMES]
    assert sum(zeros) == 88
    assert table["data"] == [[name, size, num, num / size] for name, size, num in zip(NAMES, SIZES, zeros, strict=True)]


def test_wandb_itself_accepts_the_run(
    small: type, loader: DataLoader, trainer: Callable, wandb_logger: WandbLogger, wandb_run: Callable, tmp_path: Path
) -> None:
    trainer(lc.Pruning(0.75), lc.CompressionMonitor(), logger=wandb_logger).fit(small(), loader)
    wandb.finish()
    directory = wandb_run(tmp_path).file.parent
    sync = wandb_command("sync", "--dry-run", str(directory), cwd=tmp_path)
    assert sync.returncode == 0, sync.stderr
    assert "Would sync 1 run" in sync.stderr + sync.stdout
    inspect = wandb_command("leet", "inspect", "--summary", "--json", str(directory), cwd=tmp_path)
    assert inspect.returncode == 0, inspect.stderr
    found = json.loads(inspect.stdout)
    assert found["state"] == "finished"
    assert found["summary"]["compression/sparsity"] == 0.75
    assert found["summary"]["trainer/global_step"] == 12
    assert found["summary"]["compression/layers"]["_type"] == "table-file"


def spoken(capfd: pytest.CaptureFixture[str]) -> str:
    """Everything that W&B has printed until the run was finished."""
    wandb.finish()
    return "".join(capfd.readouterr())


@pytest.fixture
def loud_wandb(quiet_wandb: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("WANDB_SILENT", "false")
    wandb.teardown()  # its settings are read once
    yield
    wandb.teardown()


def test_no_warning_of_steps_that_must_increase(
    small: type,
    loader: DataLoader,
    trainer: Callable,
    loud_wandb: None,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
    wandb_run: Callable,
) -> None:
    class Chatty(small):
        def on_train_batch_end(self, *_: Any) -> None:
            self.log("batch", 1.0)

        def on_train_epoch_end(self) -> None:
            self.log("epoch_end", 1.0)
            self.logger.log_metrics({"direct": 1.0}, step=self.global_step)

    logger = WandbLogger(offline=True, save_dir=tmp_path)
    fit = trainer(lc.Pruning(0.8), lc.CompressionMonitor(), logger=logger, log_every_n_steps=1)
    fit.fit(Chatty(), loader)
    # A second fit into the same run, whose steps begin again.
    trainer(lc.Pruning(0.8), lc.CompressionMonitor(), logger=logger, log_every_n_steps=1).fit(Chatty(), loader)
    written = spoken(capfd)
    assert "Run history" in written
    assert "Steps must be monotonically increasing" not in written
    assert "WARNING" not in written
    run = wandb_run(tmp_path)
    assert len(run.series("batch")) == 24
    assert len(run.series("train/loss")) == 24
    assert len(run.series("direct")) == 4
    # Every step of the fit changes the masks until 0.7 of it; both fits are there.
    steps = [step for step, _ in run.series("compression/sparsity")]
    half = len(steps) // 2
    assert steps[:half] == steps[half:] == sorted([0, *range(1, 10), 6, 12])


def test_there_would_be_a_warning(loud_wandb: None, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    for step in (5, 3):
        logger.experiment.log({"x": 1.0}, step=step)
    assert "Steps must be monotonically increasing" in spoken(capfd)


@pytest.mark.filterwarnings("ignore:Checkpoint directory")
def test_a_resumed_run_goes_on_along_the_axis(
    small: type, loader: DataLoader, trainer: Callable, quiet_wandb: None, wandb_run: Callable, tmp_path: Path
) -> None:
    def pruning() -> lc.Pruning:
        return lc.Pruning(0.8, schedule=lc.Schedule(end="3ep", every="1ep"))

    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    trainer(pruning(), save, max_epochs=3, enable_checkpointing=True).fit(small(), loader)
    logger = WandbLogger(offline=True, save_dir=tmp_path)
    monitor = lc.CompressionMonitor()
    resumed = trainer(pruning(), monitor, save, max_epochs=3, logger=logger, enable_checkpointing=True)
    resumed.fit(small(), loader, ckpt_path=tmp_path / "epoch=0.ckpt")
    wandb.finish()
    series = wandb_run(tmp_path).series("compression/sparsity")
    assert [step for step, _ in series] == [6, 12, 12, 18, 18]
    assert series[0][1] > 0.5
    assert series[-1][1] == round(176 * 0.8) / 176


def read_csv(directory: str) -> list[dict[str, str]]:
    with open(Path(directory) / "metrics.csv") as file:
        return list(csv.DictReader(file))


def points(directory: str, name: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[name])) for row in read_csv(directory) if row.get(name)]


def test_csv(small: type, loader: DataLoader, trainer: Callable, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    pruning = lc.Pruning(0.5, schedule=lc.Schedule(begin=2, end=6, every=2))
    trainer(pruning, lc.CompressionMonitor(), logger=logger, log_every_n_steps=1).fit(small(), loader)
    series = points(logger.log_dir, "compression/sparsity")
    assert series[0] == (0, 0.0)
    assert series[-1] == (12, 0.5)
    assert {step for step, _ in series} == {0, 2, 4, 6, 12}
    assert points(logger.log_dir, "compression/sparsity/net.0.weight")
    assert len(points(logger.log_dir, "train/loss")) == 12


def test_only_the_total(small: type, loader: DataLoader, trainer: Callable, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    trainer(lc.Pruning(0.5), lc.CompressionMonitor(per_layer=False), logger=logger).fit(small(), loader)
    assert not any(name.startswith("compression/sparsity/") for name in read_csv(logger.log_dir)[0])
    assert points(logger.log_dir, "compression/sparsity")


class Recorder(Logger):
    """Records all metrics, on any rank."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int | None, dict[str, Any]]] = []

    @property
    def name(self) -> str:
        return "recorder"

    @property
    def version(self) -> str:
        return "0"

    def log_hyperparams(self, *_: Any) -> None:
        pass

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        self.metrics.append((step, dict(metrics)))

    def series(self, name: str) -> list[tuple[int | None, Any]]:
        return [(step, metrics[name]) for step, metrics in self.metrics if name in metrics]


def test_every_logger_gets_everything(small: type, loader: DataLoader, trainer: Callable, tmp_path: Path) -> None:
    recorder, file = Recorder(), CSVLogger(tmp_path)
    trainer(lc.Pruning(0.5), lc.CompressionMonitor(), logger=[recorder, file]).fit(small(), loader)
    series = recorder.series("compression/sparsity")
    assert series == points(file.log_dir, "compression/sparsity")
    assert len(series) > 3


def test_without_a_logger_the_progress_bar_still_shows_it(small: type, loader: DataLoader, trainer: Callable) -> None:
    fit = trainer(lc.Pruning(0.5), lc.CompressionMonitor(), logger=False)
    fit.fit(small(), loader)
    assert fit.progress_bar_metrics["sparsity"] == 0.5
    assert fit.callback_metrics["sparsity"] == 0.5


def test_a_trial_run_needs_no_logger(small: type, loader: DataLoader, trainer: Callable, tmp_path: Path) -> None:
    fit = trainer(lc.Pruning(0.5), lc.CompressionMonitor(), logger=CSVLogger(tmp_path), fast_dev_run=True)
    fit.fit(small(), loader)
    assert not list(tmp_path.rglob("metrics.csv"))


def test_only_the_first_rank_touches_a_logger(
    small: type, loader: DataLoader, trainer: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    logger = WandbLogger(offline=True, save_dir=tmp_path)
    file = CSVLogger(tmp_path)
    fit = trainer(lc.Pruning(0.5), lc.CompressionMonitor(), logger=[logger, file])
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    fit.fit(small(), loader)
    assert wandb.run is None
    assert not list(tmp_path.rglob("*.wandb"))
    assert not list(tmp_path.rglob("metrics.csv"))


@pytest.mark.parametrize("monitor_first", [False, True])
def test_the_order_of_callbacks_does_not_matter(
    small: type, loader: DataLoader, trainer: Callable, monitor_first: bool
) -> None:
    recorder, pruning, monitor = Recorder(), lc.Pruning(0.5), lc.CompressionMonitor()
    callbacks = [monitor, pruning] if monitor_first else [pruning, monitor]
    trainer(*callbacks, logger=recorder).fit(small(), loader)
    steps = [step for step, _ in recorder.series("compression/sparsity")]
    assert steps == sorted([0, *range(1, 10), 6, 12])


def test_accumulation(small: type, loader: DataLoader, trainer: Callable) -> None:
    recorder = Recorder()
    pruning = lc.Pruning(0.5, schedule=lc.Schedule(curve="one_shot"))
    trainer(pruning, lc.CompressionMonitor(), logger=recorder, accumulate_grad_batches=3).fit(small(), loader)
    # Pruned before the first step, in the first batch of three.
    assert recorder.series("compression/sparsity") == [(0, 0.0), (0, 0.5), (2, 0.5), (4, 0.5)]


def test_with_two_optimizers_the_axis_is_that_of_the_module(trainer: Callable, loader: DataLoader) -> None:
    class Two(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 3)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> None:
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(self.b(self.a(batch[0])), batch[1])
                self.manual_backward(loss)
                optimizer.step()
            self.log("loss", loss)

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            return [torch.optim.SGD(self.a.parameters(), lr=0.1), torch.optim.SGD(self.b.parameters(), lr=0.1)]

    recorder = Recorder()
    pruning = lc.Pruning(0.5, schedule=lc.Schedule(end=12, every=1))
    fit = trainer(pruning, lc.CompressionMonitor(), logger=recorder, log_every_n_steps=1)
    fit.fit(Two(), loader)
    assert fit.global_step == 24
    assert [step for step, _ in recorder.series("loss")] == list(range(12))
    assert [step for step, _ in recorder.series("compression/sparsity")] == sorted([0, *range(1, 13), 6, 12])


def test_shared_weights_count_once_under_either_name(trainer: Callable, loader: DataLoader) -> None:
    class Tied(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(6, 4)
            self.head = nn.Linear(4, 6, bias=False)
            self.head.weight = self.embedding.weight

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            return self.head(self.embedding(batch[1])).square().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    recorder = Recorder()
    pruning = lc.Pruning(0.5, targets=lc.Targets(include=("head",)))
    trainer(pruning, lc.CompressionMonitor(), logger=recorder).fit(Tied(), loader)
    assert recorder.series("compression/sparsity")[-1] == (12, 0.5)
    assert recorder.series("compression/sparsity/embedding.weight")[-1] == (12, 0.5)


def test_only_selected_weights_are_shown(small: type, loader: DataLoader, trainer: Callable) -> None:
    recorder = Recorder()
    pruning = lc.Pruning(0.5, targets=lc.Targets(exclude=("net.3",)))
    trainer(pruning, lc.CompressionMonitor(), logger=recorder).fit(small(), loader)
    assert recorder.series("compression/sparsity")[-1] == (12, 0.5)
    assert not recorder.series("compression/sparsity/net.3.weight")


def test_two_techniques_share_the_monitor(small: type, loader: DataLoader, trainer: Callable) -> None:
    recorder = Recorder()
    first = lc.Pruning(0.5, targets=lc.Targets(include=("net.0",)), schedule=lc.Schedule(begin=2, curve="one_shot"))
    second = lc.Pruning(0.25, targets=lc.Targets(include=("net.3",)), schedule=lc.Schedule(begin=4, curve="one_shot"))
    trainer(first, second, lc.CompressionMonitor(), logger=recorder).fit(small(), loader)
    assert recorder.series("compression/sparsity") == [
        (0, 0.0),
        (2, 64 / 176),
        (4, 76 / 176),
        (6, 76 / 176),
        (12, 76 / 176),
    ]


def test_without_a_technique_all_weights_are_shown(small: type, loader: DataLoader, trainer: Callable) -> None:
    recorder = Recorder()
    trainer(lc.CompressionMonitor(), logger=recorder).fit(small(), loader)
    assert recorder.series("compression/sparsity") == [(0, 0.0), (6, 0.0), (12, 0.0)]


def test_the_other_namespace(loader: DataLoader) -> None:
    class Other(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(8, 3)

        def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    class OtherRecorder(Recorder, pytorch_lightning.loggers.Logger):
        pass

    recorder = OtherRecorder()
    trainer = pytorch_lightning.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=[lc.Pruning(0.5), lc.CompressionMonitor()],
        logger=recorder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Other(), loader)
    assert [step for step, _ in recorder.series("compression/sparsity")] == sorted([0, *range(1, 10), 6, 12])
    assert recorder.series("compression/sparsity")[-1] == (12, 0.5)
    assert trainer.progress_bar_metrics["sparsity"] == 0.5
