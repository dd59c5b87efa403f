"""Contract 7: what comes after the fit, other Trainers, and models of other shapes."""

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from tests.cases import (
    CASES,
    RAMP,
    Case,
    Loader,
    Net,
    assert_same,
    assert_zeros,
    case,
    dataset,
    every_case,
    every_mask,
    load,
    main_cases,
    masks_of,
    num_masked,
    num_zeros,
    plain,
    save_every_step,
    scales_of,
    trainer,
    val_loader,
)


class Masks(Callback):
    """The masks, and the scales of quantizers, when a fit begins and after each batch."""

    def __init__(self) -> None:
        self.first: dict[str, Tensor] | None = None
        self.last: dict[str, Tensor] = {}
        self.first_scales: dict[str, Tensor] | None = None
        self.last_scales: dict[str, Tensor] = {}

    def on_train_batch_start(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        self.first = self.first or masks_of(run)
        self.first_scales = self.first_scales or scales_of(model.state_dict())

    def on_train_batch_end(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        self.last = masks_of(run)
        assert_zeros(dict(model.named_parameters()), self.last)

    def on_train_end(self, run: Trainer, model: LightningModule) -> None:
        self.last_scales = scales_of(model.state_dict())


def assert_goes_on(masks: Masks, previous: Masks) -> None:
    """A fit begins where another ended."""
    assert_same(masks.first, previous.last)
    assert_same(masks.first_scales, previous.last_scales)


@main_cases(CASES)
def test_evaluation_of_a_checkpoint_after_the_fit(case: Case, tmp_path: Path) -> None:
    model, masks = Net(), Masks()
    case.prepare(model)
    best = ModelCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    run = trainer([masks, best, *case.callbacks()], max_epochs=3)
    run.fit(model, Loader(), val_loader())
    for path in ("best", "last", best.best_model_path):
        run.test(model, val_loader(), ckpt_path=path)
        run.validate(model, val_loader(), ckpt_path=path)
        assert len(run.predict(model, DataLoader(dataset(16), batch_size=8), ckpt_path=path)) == 2
        assert abs(num_masked(masks.last) - case.zeros) <= case.within
        if not case.grows and not case.rounds_to_zero:
            assert num_zeros(model) == num_masked(masks.last)
    ours = run.test(model, val_loader(), ckpt_path="best")
    for stage in ("test", "validate"):
        fresh = getattr(trainer(case.evaluating()), stage)(Net(), val_loader(), ckpt_path=best.best_model_path)
        assert_same(list(fresh[0].values()), list(ours[0].values()))
    images = DataLoader(dataset(16), batch_size=8)
    fresh = trainer(case.evaluating()).predict(Net(), images, ckpt_path=best.best_model_path)
    assert_same(fresh, run.predict(model, images, ckpt_path="best"))


@every_case
def test_evaluation_without_a_fit(case: Case) -> None:
    model = Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = trainer(case.callbacks())
    run.validate(model, val_loader())
    run.test(model, val_loader())
    run.predict(model, DataLoader(dataset(16), batch_size=8))
    assert_same(dict(model.state_dict()), before)


@main_cases(CASES)
def test_second_and_third_fit_of_the_same_model_keep_the_masks(case: Case) -> None:
    model, callbacks = Net(), case.callbacks()
    case.prepare(model)
    previous: Masks | None = None
    for _ in range(3):
        masks = Masks()
        trainer([masks, *callbacks]).fit(model, Loader(), val_loader())
        if previous is not None:
            assert_goes_on(masks, previous)
        assert abs(num_masked(masks.last) - case.zeros) <= case.within
        previous = masks
    assert all(callback.reached for callback in callbacks)


@main_cases(CASES)
def test_fit_of_another_model_starts_anew(case: Case) -> None:
    def fit(callbacks: list[Callback]) -> LightningModule:
        model = Net()
        case.prepare(model)
        trainer(callbacks).fit(model, Loader(), val_loader())
        return model

    callbacks = case.callbacks()
    fit(callbacks)
    again, fresh = fit(callbacks), fit(case.callbacks())
    assert_same(dict(again.state_dict()), dict(fresh.state_dict()))


@main_cases(CASES)
def test_a_longer_fit_with_the_same_trainer_goes_on(case: Case) -> None:
    model, masks = Net(), Masks()
    case.prepare(model)
    run = trainer([masks, *case.callbacks()])
    run.fit(model, Loader(), val_loader())
    run.fit_loop.max_epochs = 4
    run.fit(model, Loader(), val_loader())
    assert run.global_step == 20
    assert abs(num_masked(masks.last) - case.zeros) <= case.within


@every_case
def test_a_checkpoint_written_after_the_fit_holds_the_masks(case: Case, tmp_path: Path) -> None:
    model, masks = Net(), Masks()
    case.prepare(model)
    run = trainer([masks, *case.callbacks()])
    run.fit(model, Loader())
    run.save_checkpoint(tmp_path / "end.ckpt")
    begin, twin = Masks(), Net()
    case.prepare(twin)
    trainer([begin, *case.callbacks()], max_epochs=3).fit(twin, Loader(), ckpt_path=tmp_path / "end.ckpt")
    assert_goes_on(begin, masks)


@every_mask
def test_weights_alone_and_fixed_keep_the_zeros(case: Case, tmp_path: Path) -> None:
    model, masks = Net(), Masks()
    case.prepare(model)
    saver = ModelCheckpoint(tmp_path, filename="weights", save_weights_only=True)
    trainer([masks, saver, *case.callbacks()]).fit(model, Loader(), val_loader())
    net = Net()
    net.load_state_dict(plain(load(tmp_path / "weights.ckpt")["state_dict"]))
    fixed = Masks()
    targets = case.callbacks()[0].targets if len(case.callbacks()) == 1 else lc.Targets()
    trainer([fixed, lc.Fixed(targets)]).fit(net, Loader())
    assert_zeros(dict(net.named_parameters()), masks.last)


class Raises(Callback):
    def __init__(self, at: int) -> None:
        self.at = at

    def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
        if run.global_step == self.at:
            raise RuntimeError("power cut")


@every_case
def test_a_fit_that_failed_leaves_nothing_behind(case: Case, tmp_path: Path) -> None:
    model, callbacks = Net(), case.callbacks()
    case.prepare(model)
    masks = Masks()
    run = trainer([masks, OnExceptionCheckpoint(tmp_path, "failed"), *callbacks, Raises(5)])
    with pytest.raises(RuntimeError, match="power cut"):
        run.fit(model, Loader())
    assert not any(optimizer._optimizer_step_post_hooks for optimizer in run.optimizers)
    assert_zeros(load(tmp_path / "failed.ckpt")["state_dict"], masks.last)
    again = Masks()
    trainer([again, *callbacks]).fit(model, Loader())
    assert_same(again.first, masks.last)
    assert abs(num_masked(again.last) - case.zeros) <= case.within


def test_what_a_failed_fit_saved_resumes(tmp_path: Path) -> None:
    masks, begin = Masks(), Masks()
    run = trainer([masks, OnExceptionCheckpoint(tmp_path, "failed"), lc.Pruning(0.9, schedule=RAMP), Raises(5)])
    with pytest.raises(RuntimeError, match="power cut"):
        run.fit(Net(), Loader())
    trainer([begin, lc.Pruning(0.9, schedule=RAMP)]).fit(Net(), Loader(), ckpt_path=tmp_path / "failed.ckpt")
    assert_same(begin.first, masks.last)


def test_hooks_are_gone_after_the_fit() -> None:
    run = trainer([lc.Pruning(0.9, schedule=RAMP)])
    run.fit(model := Net(), Loader())
    assert not run.optimizers or not run.optimizers[0]._optimizer_step_post_hooks
    assert not model._forward_hooks
    assert not model._load_state_dict_pre_hooks


@main_cases(CASES)
def test_trainer_and_module_of_pytorch_lightning(case: Case, tmp_path: Path) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.callbacks import EarlyStopping
    from pytorch_lightning.callbacks import ModelCheckpoint as PlCheckpoint

    body = {name: value for name, value in vars(Net).items() if inspect.isfunction(value) and "__class__" not in
            value.__code__.co_freevars}  # fmt: skip

    class PlNet(pl.LightningModule):
        locals().update(body)

        def __init__(self) -> None:
            super().__init__()
            net = Net()
            self.optimizer = "sgd"
            for name, child in net.named_children():
                setattr(self, name, child)

    class Watch(pl.Callback):
        def on_train_batch_end(self, run: Any, model: Any, *args: Any) -> None:
            self.masks = masks_of(run)
            assert_zeros(dict(model.named_parameters()), self.masks)

    model, watch = PlNet(), Watch()
    case.prepare(model)
    saver = PlCheckpoint(tmp_path, monitor="val_loss", save_last=True)
    run = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_progress_bar=False, enable_model_summary=False,
        callbacks=[watch, saver, EarlyStopping("val_loss"), *case.callbacks()],
    )  # fmt: skip
    run.fit(model, Loader(), val_loader())
    assert abs(num_masked(watch.masks) - case.zeros) <= case.within
    run.test(model, val_loader(), ckpt_path="best")
    assert num_zeros(model) >= num_masked(watch.masks)
    resumed = pl.Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[watch, *case.callbacks()],
    )  # fmt: skip
    resumed.fit(PlNet(), Loader(), val_loader(), ckpt_path=tmp_path / "last.ckpt")
    assert abs(num_masked(watch.masks) - case.zeros) <= case.within


@pytest.mark.parametrize("name", ["cubic", "rigl", "snip", "recalibrate"])
def test_averages_in_pytorch_lightning(name: str) -> None:
    pl = pytest.importorskip("pytorch_lightning")
    from pytorch_lightning.callbacks import EMAWeightAveraging as PlAverage

    class PlNet(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.net.loss(batch)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            assert_zeros(dict(self.named_parameters()), masks_of(self.trainer))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=0.01)

    model = PlNet()
    run = pl.Trainer(
        accelerator="cpu", max_epochs=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, callbacks=[*case(name).callbacks(), PlAverage(decay=0.5)],
    )  # fmt: skip
    run.fit(model, Loader(), val_loader())
    assert num_zeros(model) >= case(name).zeros


class Tied(LightningModule):
    """An embedding-like layer whose weight is used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(8, 8)
        self.decoder = nn.Linear(8, 8)
        self.decoder.weight = self.encoder.weight
        self.head = nn.Linear(8, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.head(self.decoder(self.encoder(batch[0]).relu()).relu()), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def vectors() -> DataLoader:
    inputs = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(inputs, inputs[:, :4].argmax(dim=1)), batch_size=8)


@pytest.mark.parametrize("score", [lc.Magnitude(), lc.Taylor(), lc.SNIP()], ids=lambda score: type(score).__name__)
def test_tied_weights_are_one(score: Any) -> None:
    model, pruning = Tied(), lc.Pruning(0.5, score=score, schedule=RAMP)
    trainer([EMAWeightAveraging(decay=0.5), pruning]).fit(model, vectors())
    assert model.decoder.weight is model.encoder.weight
    assert list(pruning.state_dict()["constraint"]) == ["encoder.weight", "head.weight"]
    assert sum(int((p == 0).sum()) for p in (model.encoder.weight, model.head.weight)) == 48


class Recurrent(LightningModule):
    """An LSTM with a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = nn.LSTM(4, 8, num_layers=2, batch_first=True)
        self.head = nn.Linear(8, 4)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        states, _ = self.lstm(batch[0].flatten(2).transpose(1, 2))
        return nn.functional.cross_entropy(self.head(states[:, -1]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


@pytest.mark.parametrize("score", [lc.Magnitude(), lc.Taylor(), lc.SNIP()], ids=lambda score: type(score).__name__)
def test_recurrent_layers_by_type(score: Any) -> None:
    model = Recurrent()
    pruning = lc.Pruning(0.5, score=score, targets=lc.Targets(types=(nn.LSTM, nn.Linear)), schedule=RAMP)
    trainer([Masks(), pruning]).fit(model, Loader())
    weights = [p for name, p in model.named_parameters() if "weight" in name]
    assert len(weights) == 5
    assert sum(int((w == 0).sum()) for w in weights) == sum(w.numel() for w in weights) // 2
    assert (model.lstm.bias_hh_l0 != 0).all()


def test_recurrent_layers_by_default() -> None:
    model = Recurrent()
    trainer([lc.Pruning(0.5, schedule=RAMP)]).fit(model, Loader())
    assert all((p == 0).any() for name, p in model.lstm.named_parameters() if "weight" in name)
    assert lc.report(model).weights.sparsity == pytest.approx(0.5, abs=0.01)


class BuiltInSetup(Net):
    """Has its layers only from ``setup`` on."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = {name: getattr(self, name) for name in ("conv1", "conv2", "fc")}
        for name in self.layers:
            delattr(self, name)

    def build(self) -> None:
        for name, layer in self.layers.items():
            setattr(self, name, layer)

    def setup(self, stage: str) -> None:
        self.build()


class BuiltInConfigure(BuiltInSetup):
    """Has its layers only from ``configure_model`` on."""

    def setup(self, stage: str) -> None:
        pass

    def configure_model(self) -> None:
        self.build()


@pytest.mark.parametrize("model", [BuiltInSetup, BuiltInConfigure])
@main_cases(CASES)
def test_models_that_are_built_late(case: Case, model: type[BuiltInSetup], tmp_path: Path) -> None:
    def late() -> BuiltInSetup:
        net = model()
        net.build()
        case.prepare(net)
        for name in net.layers:
            delattr(net, name)
        return net

    masks, begin = Masks(), Masks()
    if "late" in case.refused:
        with pytest.raises(ValueError, match=case.refused["late"]):
            trainer(case.callbacks()).fit(late(), Loader(), val_loader())
        return
    trainer([masks, save_every_step(tmp_path), *case.callbacks()]).fit(late(), Loader(), val_loader())
    assert abs(num_masked(masks.last) - case.zeros) <= case.within
    trainer([begin, *case.callbacks()]).fit(late(), Loader(), ckpt_path=tmp_path / "step=8.ckpt")
    assert_same(begin.last, masks.last)


@pytest.mark.parametrize("model", [BuiltInSetup, BuiltInConfigure])
def test_errors_of_models_that_are_built_late_come_before_the_first_step(model: type[BuiltInSetup]) -> None:
    net = model()
    with pytest.raises(ValueError, match="'head' matches no layer"):
        trainer([lc.Pruning(0.9, targets=lc.Targets(include=("head",)))]).fit(net, Loader())
    assert torch.equal(net.conv1.weight, Net().conv1.weight)


@pytest.mark.parametrize(
    "options",
    [
        {"barebones": True},
        {"limit_train_batches": 3},
        {"overfit_batches": 2},
        {"reload_dataloaders_every_n_epochs": 1},
        {"num_sanity_val_steps": -1},
        {"inference_mode": False},
        {"detect_anomaly": True},
        {"benchmark": False, "deterministic": True},
        {"min_epochs": 2, "max_epochs": None, "max_steps": 10},
        {"check_val_every_n_epoch": None, "val_check_interval": 3},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_trainer(options: dict[str, Any]) -> None:
    masks = Masks()
    defaults = {"accelerator": "cpu", "max_epochs": 2, "enable_progress_bar": False, "enable_model_summary": False}
    quiet = {} if "barebones" in options else {"logger": False, "enable_checkpointing": False}
    run = Trainer(callbacks=[masks, lc.Pruning(0.9, schedule=RAMP)], **{**defaults, **quiet, **options})
    train = Loader() if "overfit_batches" not in options else DataLoader(dataset(), batch_size=8)
    run.fit(Net(), train, val_loader())
    assert num_masked(masks.last) == 346


def test_tuner_before_the_fit(tmp_path: Path) -> None:
    model, masks = Net(), Masks()
    run = trainer([masks, lc.Pruning(0.9, schedule=RAMP)], default_root_dir=tmp_path)
    model.lr = 0.1
    Tuner(run).lr_find(model, Loader(), num_training=5, update_attr=False)
    run.fit(model, Loader())
    assert num_masked(masks.last) == 346


def test_no_gradient_for_a_masked_weight_is_fine() -> None:
    class Unused(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.norm1(self.conv1(x)).relu().mean(dim=(2, 3)))

    for score in (lc.Magnitude(), lc.Taylor(), lc.Movement(), lc.SNIP(), lc.GraSP(), lc.SynFlow(rounds=2)):
        model = Unused()
        trainer([lc.Pruning(0.5, score=score, schedule=RAMP)]).fit(model, Loader())
        assert num_zeros(model) == 192


def test_a_step_without_loss_is_skipped() -> None:
    class Skips(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    model, masks = Skips(), Masks()
    trainer([masks, lc.Pruning(0.9, schedule=lc.Schedule(end=1.0, every=1))]).fit(model, Loader())
    assert num_masked(masks.last) == 346


def test_one_stroke_needs_no_more_than_a_beginning() -> None:
    """Its unused end and interval are no reason to refuse a run without bound."""

    class Stop(Callback):
        def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
            run.should_stop = run.global_step == 5

    for begin in (0.0, 3):
        model, pruning = Net(), lc.Pruning(0.9, schedule=lc.Schedule(begin=begin, curve="one_shot"))
        trainer([pruning, Stop()], max_epochs=-1).fit(model, Loader())
        assert (num_zeros(model), pruning.steps) == (346, 5)
