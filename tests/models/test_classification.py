"""ClassificationModule."""

import pytest
import safetensors.torch
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc


@pytest.fixture
def loader() -> DataLoader:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(32, 1, 8, 8, generator=generator)
    return DataLoader(TensorDataset(images, (images.mean((1, 2, 3)) > 0).long()), batch_size=8)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 2))


def make_trainer(tmp_path, **kwargs) -> Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(**{"max_epochs": 2, "default_root_dir": tmp_path, "num_sanity_val_steps": 0, **quiet, **kwargs})


def test_logs_and_learning_rate(tmp_path, loader):
    rates = []

    class Watched(lc.ClassificationModule):
        def on_train_batch_start(self, batch, batch_idx):
            rates.append(self.optimizers().param_groups[0]["lr"])

    module = Watched(network(), 2)
    trainer = make_trainer(tmp_path, log_every_n_steps=1)
    trainer.fit(module, loader, loader)
    assert {"train/loss", "val/loss", "val/acc"} <= set(trainer.callback_metrics)
    assert rates[0] == pytest.approx(0.1)
    assert rates[4] == pytest.approx(0.05)  # half way along the cosine, step by step
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.0)
    (metrics,) = trainer.test(module, loader, verbose=False)
    right = (module(loader.dataset.tensors[0]).argmax(1) == loader.dataset.tensors[1]).float().mean()
    assert metrics["test/acc"] == pytest.approx(right.item())
    assert trainer.predict(module, loader)[0].shape == (8, 2)


def test_a_scheduler_of_ones_own(tmp_path, loader):
    step = lc.ClassificationModule(
        network(), 2, lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.5)
    )
    make_trainer(tmp_path).fit(step, loader, loader)
    assert step.optimizers().param_groups[0]["lr"] == pytest.approx(0.025)


def test_a_scheduler_that_watches(tmp_path, loader):
    from lightning.pytorch.cli import ReduceLROnPlateau

    module = lc.ClassificationModule(network(), 2, lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="val/loss"))
    make_trainer(tmp_path).fit(module, loader, loader)
    assert module.optimizers().param_groups[0]["lr"] == pytest.approx(0.1)


def test_label_smoothing_is_for_training_only(loader):
    x, y = next(iter(loader))
    module = lc.ClassificationModule(network(), 2, label_smoothing=0.2)
    module.log = lambda *args, **kwargs: None
    expected = nn.functional.cross_entropy(module(x), y, label_smoothing=0.2)
    assert torch.equal(module.training_step((x, y), 0), expected)


def test_checkpoints_are_safe_and_complete(tmp_path, loader):
    module = lc.ClassificationModule("conv4", 2, model_kwargs={"in_chans": 1, "img_size": 8})
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, loader)
    path = trainer.checkpoint_callback.best_model_path
    torch.load(path, weights_only=True)
    again = lc.ClassificationModule.load_from_checkpoint(path, weights_only=True)
    assert all(map(torch.equal, again.state_dict().values(), module.state_dict().values()))


def test_networks_stay_out_of_hyperparameters(tmp_path, loader):
    module = lc.ClassificationModule(network(), 2)
    assert dict(module.hparams) == {
        "num_classes": 2,
        "label_smoothing": 0.0,
        "mixup": None,
        "small_input": False,
        "model_kwargs": None,
    }
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, loader)
    path = trainer.checkpoint_callback.best_model_path
    again = lc.ClassificationModule.load_from_checkpoint(path, model=network(), weights_only=True)
    assert torch.equal(again.model[1].weight, module.model[1].weight)


@pytest.mark.parametrize("form", ["safetensors", "state dict", "lightning"])
def test_starting_weights(form, tmp_path):
    weights = {name: torch.randn_like(value) for name, value in network().state_dict().items()}
    path = tmp_path / {"safetensors": "a.safetensors", "state dict": "a.pt", "lightning": "a.ckpt"}[form]
    if form == "safetensors":
        safetensors.torch.save_file(weights, path)
    elif form == "state dict":
        torch.save(weights, path)
    else:
        extra = {"val_acc.tp": torch.zeros(1)}
        torch.save({"state_dict": {f"model.{name}": w for name, w in weights.items()} | extra, "epoch": 3}, path)
    module = lc.ClassificationModule(network(), 2, checkpoint=str(path))
    assert all(torch.equal(module.model.state_dict()[name], w) for name, w in weights.items())
    assert "checkpoint" not in module.hparams


def test_weights_that_do_not_fit(tmp_path):
    weights = network().state_dict()
    for change, words in (
        ({"1.bias": None}, "it lacks '1.bias'"),
        ({"2.weight": torch.zeros(2)}, "it has '2.weight', which the model lacks"),
        ({"1.bias": torch.zeros(3)}, r"'1.bias' is \[3\] in the file and \[2\] in the model"),
    ):
        torch.save({k: v for k, v in {**weights, **change}.items() if v is not None}, tmp_path / "a.pt")
        with pytest.raises(ValueError, match=f"a.pt' belongs to another network: {words}"):
            lc.ClassificationModule(network(), 2, checkpoint=str(tmp_path / "a.pt"))


class NotWeights:
    pass


def test_files_that_are_no_weights(tmp_path):
    torch.save(NotWeights(), tmp_path / "object.pt")
    (tmp_path / "text.safetensors").write_text("no weights")
    torch.save({"epoch": 3}, tmp_path / "empty.pt")
    for name, words in (
        ("object.pt", "cannot be read"),
        ("text.safetensors", "cannot be read"),
        ("empty.pt", "contains no"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            lc.ClassificationModule(network(), 2, checkpoint=str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        lc.ClassificationModule("resnet18x", 10)
    with pytest.raises(ValueError, match=r"model_kwargs=\{'width': 3\} are not supported by 'conv4'"):
        lc.ClassificationModule("conv4", 10, model_kwargs={"width": 3})
    with pytest.raises(ValueError, match="label_smoothing=1"):
        lc.ClassificationModule("conv4", 10, label_smoothing=1.0)


MIXING = lc.Mixup(mixup_alpha=0.4)


class Watched(lc.ClassificationModule):
    """Keeps what training steps get, and changes no weight."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch)
        return super().training_step(batch, batch_idx)


def watched(mixup=MIXING, **kwargs) -> Watched:
    return Watched(network(), 2, mixup=mixup, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), **kwargs)


def fit(tmp_path, loader, module=None, *, seed=0, ckpt_path=None, **kwargs) -> Watched:
    module = module or watched()
    torch.manual_seed(seed)
    make_trainer(tmp_path, **kwargs).fit(module, loader, loader, ckpt_path=ckpt_path)
    return module


def same(ours, theirs) -> bool:
    assert len(ours) == len(theirs)
    return all(torch.equal(a, b) for x, y in zip(ours, theirs, strict=True) for a, b in zip(x, y, strict=True))


def test_training_is_on_mixed_batches_and_evaluation_is_not(tmp_path, loader):
    module = fit(tmp_path, loader, watched(label_smoothing=0.2), max_epochs=1)
    plain = list(loader)
    for (images, targets), (originals, _) in zip(module.seen, plain, strict=True):
        assert targets.shape == (8, 2)
        assert targets.min() >= 0.1 - 1e-6  # smoothed
        assert not torch.equal(images, originals)
    assert len({float(targets[0, 0]) for _, targets in module.seen}) == 4  # each in another way
    trainer = make_trainer(tmp_path)
    (metrics,) = trainer.test(module, loader, verbose=False)
    labels = torch.cat([y for _, y in plain])
    logits = torch.cat([module(x) for x, _ in plain])  # in batches, whose size decides how a CPU rounds
    assert metrics["test/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert metrics["test/loss"] == pytest.approx(nn.functional.cross_entropy(logits, labels).item())
    assert "train/acc" not in trainer.callback_metrics
    assert torch.equal(torch.cat(trainer.predict(module, loader)), logits)
    module.log = lambda *args, **kwargs: None
    expected = nn.functional.cross_entropy(module(images), targets)  # smoothed no more
    assert torch.equal(module.training_step((images, targets), 0), expected)


def test_batches_without_a_trainer_stay(loader):
    batch = next(iter(loader))
    assert watched().train().on_after_batch_transfer(batch, 0) is batch


def test_mixing_hangs_on_the_seed_of_the_run(tmp_path, loader):
    first, again = (fit(tmp_path, loader, limit_val_batches=i) for i in (0, 1))
    assert same(first.seen, again.seen)
    assert not same(first.seen, fit(tmp_path, loader, seed=1).seen)
    module = watched()
    fit(tmp_path, loader, module, seed=1)
    module.seen.clear()
    assert same(fit(tmp_path, loader, module).seen, first.seen)  # that of the later run
    assert not same(first.seen[:4], first.seen[4:])  # the second epoch in other ways

    class Second(Watched):
        global_rank = 1

    rank = Second(network(), 2, mixup=MIXING)
    assert not same(fit(tmp_path, loader, rank).seen, first.seen)


def amount(targets) -> float:
    """How much is mixed in, of two classes that are not the same in every pair."""
    return float(targets[targets > 0.5].min())


@pytest.mark.parametrize("step", [2, 4, 5])
def test_a_resumed_run_mixes_on(step, tmp_path, loader):
    from lightning.pytorch.callbacks import ModelCheckpoint

    every = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(tmp_path, loader, callbacks=[every])
    resumed = fit(tmp_path, loader, seed=9, ckpt_path=tmp_path / f"step={step}.ckpt")
    num_left = 8 - step
    assert [len(resumed.seen), len(whole.seen)] == [num_left, 8]
    # A loader like this begins its epoch anew after a stop within it, so that labels may be others.
    ours, theirs = ([amount(t) for _, t in module.seen[-num_left:]] for module in (resumed, whole))
    assert ours == pytest.approx(theirs, abs=1e-5)
    if step == 4:
        assert same(resumed.seen, whole.seen[4:])
    loaded = Watched.load_from_checkpoint(tmp_path / "step=4.ckpt", model=network(), weights_only=True)
    # It starts a run of its own.
    assert not same(fit(tmp_path, loader, loaded, seed=9).seen, whole.seen)
    assert "mixing_seed" in torch.load(tmp_path / "step=4.ckpt", weights_only=True)
    assert loaded.mixup == MIXING


def test_checkpoints_with_mixing_are_safe_and_complete(tmp_path, loader):
    kwargs = {"in_chans": 1, "img_size": 8}
    module = lc.ClassificationModule("conv4", 2, mixup=MIXING, model_kwargs=kwargs)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, loader)
    path = trainer.checkpoint_callback.best_model_path
    again = lc.ClassificationModule.load_from_checkpoint(path, weights_only=True)
    assert again.mixup == MIXING
    assert dict(again.hparams) == dict(module.hparams)
    assert module.hparams["mixup"] == {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "prob": 1.0, "switch_prob": 0.5}
    assert all(map(torch.equal, again.state_dict().values(), module.state_dict().values()))
    other = lc.ClassificationModule.load_from_checkpoint(path, mixup=None, weights_only=True)
    assert other.mixup is None
    assert "mixing_seed" not in {**_checkpoint_of(other)}


def _checkpoint_of(module) -> dict:
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    return checkpoint


def test_moving_averages_and_half_precision(tmp_path, loader):
    from lightning.pytorch.callbacks import EMAWeightAveraging

    module = fit(tmp_path, loader, callbacks=[EMAWeightAveraging(decay=0.5)], precision="bf16-true")
    assert module.seen[0][0].dtype == torch.bfloat16
    assert module.seen[0][1].dtype == torch.float32
    plain = fit(tmp_path, loader, precision="bf16-true")
    assert not torch.equal(module.model[1].weight, plain.model[1].weight)
    assert same(module.seen, plain.seen)


class Images(LightningDataModule):
    def __init__(self, loader):
        super().__init__()
        self.loader = loader

    def train_dataloader(self):
        return self.loader

    predict_dataloader = train_dataloader


class Hooked(Images):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch


def test_data_modules(tmp_path, loader, recwarn):
    for mixup in (None, MIXING):
        module = watched(mixup)
        make_trainer(tmp_path, max_epochs=1).fit(module, datamodule=Images(loader))
        assert module.seen[0][1].is_floating_point() == (mixup is not None)
        make_trainer(tmp_path).predict(module, datamodule=Images(loader))
    assert not [w for w in recwarn if "on_after_batch_transfer" in str(w.message)]
    with pytest.raises(ValueError, match=r"mixup: Hooked\.on_after_batch_transfer replaces the hook"):
        make_trainer(tmp_path).fit(watched(), datamodule=Hooked(loader))
    make_trainer(tmp_path, max_epochs=1).fit(watched(None), datamodule=Hooked(loader))
