from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc

EPOCH = 3


class Finetuned(pl.LightningModule):
    """Trains its backbone from the fourth epoch on."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).requires_grad_(False)
        self.head = nn.Linear(8, 3)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def on_train_epoch_start(self) -> None:
        self.backbone.requires_grad_(self.current_epoch >= EPOCH)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), 0.01)


EARLY = lc.Schedule(begin=0, end=8, every=2)
LATE = lc.Schedule(begin=4, end=30, every=3)


@pytest.mark.parametrize(
    "options",
    [{}, {"score": lc.Taylor()}, {"growth": lc.RigL()}, {"pattern": lc.NM(2, 4)}],
    ids=["magnitude", "gradient score", "growth", "2:4"],
)
@pytest.mark.parametrize("schedule", [EARLY, LATE], ids=["after the end", "before the end"])
def test_pruning_takes_them_in(
    trainer: Callable, loader: DataLoader, schedule: lc.Schedule, options: dict[str, Any]
) -> None:
    module, pruning = Finetuned(), lc.Pruning(0.5, schedule=schedule, **options)
    trainer(pruning, max_epochs=6).fit(module, loader)
    assert pruning.reached
    assert lc.report(module).weights.sparsity == pytest.approx(0.5, abs=0.01)


def test_what_is_taken_in_is_named(trainer: Callable, loader: DataLoader, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        trainer(lc.Pruning(0.5, schedule=EARLY), max_epochs=5).fit(Finetuned(), loader)
    taken = "Pruning takes in 'backbone.0.weight', 'backbone.2.weight', which are trained from now on."
    assert [record.message for record in caplog.records].count(taken) == 1


def test_what_the_pattern_does_not_fit_is_named_once_it_is_trained(trainer: Callable, loader: DataLoader) -> None:
    module = Finetuned()
    module.backbone = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)).requires_grad_(False)
    with pytest.raises(ValueError, match=r"'backbone\.2\.weight'"):
        trainer(lc.Pruning(0.5, pattern=lc.NM(2, 4), schedule=EARLY), max_epochs=5).fit(module, loader)


def test_a_layer_that_freezes_before_the_first_update_stays_as_it_is(trainer: Callable, loader: DataLoader) -> None:
    class Frozen(Finetuned):
        def on_train_epoch_start(self) -> None:
            self.backbone.requires_grad_(False)

    module = Frozen()
    module.backbone.requires_grad_(True)
    trainer(lc.Pruning(0.5, schedule=lc.Schedule(begin=0, curve="one_shot"))).fit(module, loader)
    assert (module.head.weight == 0).any()
    assert all((layer.weight != 0).all() for layer in module.backbone if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("method", ["hard", "dkm"])
def test_clustering_takes_them_in(trainer: Callable, loader: DataLoader, method: Any) -> None:
    module = Finetuned()
    trainer(lc.WeightClustering(4, schedule=EARLY, method=method), max_epochs=6).fit(module, loader)
    assert all(len(layer.weight.unique()) <= 4 for layer in module.modules() if isinstance(layer, nn.Linear))


@pytest.mark.parametrize("epoch", [2, 5])
@pytest.mark.parametrize(
    "technique",
    [lambda: lc.Pruning(0.5, schedule=LATE), lambda: lc.WeightClustering(4, schedule=LATE)],
    ids=["pruning", "clustering"],
)
def test_a_resumed_fit_equals_an_uninterrupted_one(
    trainer: Callable, loader: DataLoader, tmp_path: Path, technique: Callable, epoch: int
) -> None:
    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch + 1 == epoch:
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    whole, rest = Finetuned(), Finetuned()
    trainer(technique(), Save(), max_epochs=6).fit(whole, loader)
    trainer(technique(), max_epochs=6).fit(rest, loader, ckpt_path=tmp_path / "saved.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


class Tied(Finetuned):
    """Has its first weight under an earlier name, too, of a layer that is no target."""

    def __init__(self) -> None:
        super().__init__()
        backbone, head = self.backbone, self.head
        del self.backbone, self.head
        self.lookup = nn.Embedding(16, 8)
        self.backbone, self.head = backbone, head
        self.lookup.weight = self.backbone[0].weight


def test_a_resumed_fit_thaws_a_weight_with_two_names(trainer: Callable, loader: DataLoader, tmp_path: Path) -> None:
    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            if trainer.current_epoch == EPOCH + 1:  # five steps before an update that would mend it
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    whole, rest, schedule = Tied(), Tied(), lc.Schedule(begin=5, end=35, every=5)
    trainer(lc.Pruning(0.5, schedule=schedule), Save(), max_epochs=6).fit(whole, loader)
    trainer(lc.Pruning(0.5, schedule=schedule), max_epochs=6).fit(rest, loader, ckpt_path=tmp_path / "saved.ckpt")
    assert (whole.lookup.weight == 0).any()
    for name, value in whole.state_dict().items():
        assert torch.equal(value, rest.state_dict()[name]), name


class HeadAlone(Tied):
    """Trains its backbone in a first fit and its head alone in a second one."""

    def on_train_epoch_start(self) -> None:
        """Leave the backbone as it is."""

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], 0.01)


def test_a_second_fit_without_a_weight_that_has_two_names(trainer: Callable, loader: DataLoader) -> None:
    model, technique = HeadAlone(), lc.WeightClustering(4, schedule=EARLY)
    model.backbone.requires_grad_(True)
    trainer(technique).fit(model, loader)
    before = model.lookup.weight.detach().clone()
    model.backbone.requires_grad_(False)
    trainer(technique).fit(model, loader)
    assert torch.equal(model.lookup.weight, before)
    assert technique.reached


def test_fixed_keeps_the_zeros_that_they_have(trainer: Callable, loader: DataLoader) -> None:
    module = Finetuned()
    with torch.no_grad():
        module.backbone[0].weight[:, ::2] = 0
        module.head.weight[:, ::2] = 0
    trainer(lc.Fixed(), max_epochs=6).fit(module, loader)
    assert (module.backbone[0].weight[:, ::2] == 0).all()
    assert (module.backbone[0].weight[:, 1::2] != 0).all()


def test_what_cannot_take_them_in_says_so(trainer: Callable, loader: DataLoader) -> None:
    with pytest.warns(UserWarning, match="does not quantize 'backbone.0.weight', 'backbone.2.weight', which"):
        trainer(lc.QuantizationAwareTraining(), max_epochs=5).fit(Finetuned(), loader)
    rewinding = lc.Pruning(0.5, schedule=LATE, rewind=lc.RewindWeights(1))
    with pytest.raises(ValueError, match="RewindWeights does not support layers that thaw"):
        trainer(rewinding, max_epochs=5).fit(Finetuned(), loader)


class FreezeAfterSetup(pl.Callback):
    """Freezes the backbone once quantizers are placed; the module itself unfreezes it in the fourth epoch."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        pl_module.backbone.requires_grad_(False)  # type: ignore[operator,union-attr]


def test_layers_that_are_quantized_before_they_are_frozen_are_quantized_all_along(
    trainer: Callable, loader: DataLoader, recwarn: pytest.WarningsRecorder, caplog: pytest.LogCaptureFixture
) -> None:
    module = Finetuned()
    module.backbone.requires_grad_(True)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        trainer(lc.QuantizationAwareTraining(), FreezeAfterSetup(), max_epochs=5).fit(module, loader)
    assert "QuantizationAwareTraining covers 100.0% of the weights" in caplog.text
    assert not [warning for warning in recwarn if "does not quantize" in str(warning.message)]
