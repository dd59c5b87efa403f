"""ClassificationModule."""

import pytest
import safetensors.torch
import torch
from lightning.pytorch import Trainer
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
    assert dict(module.hparams) == {"num_classes": 2, "label_smoothing": 0.0, "model_kwargs": None}
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
        with pytest.raises(ValueError, match=f"a.pt' is of another network: {words}"):
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
        ("empty.pt", "holds no"),
    ):
        with pytest.raises(ValueError, match=words) as error:
            lc.ClassificationModule(network(), 2, checkpoint=str(tmp_path / name))
        assert "\n" not in str(error.value)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="did you mean 'resnet18'"):
        lc.ClassificationModule("resnet18x", 10)
    with pytest.raises(ValueError, match=r"model_kwargs=\{'width': 3\} do not fit 'conv4'"):
        lc.ClassificationModule("conv4", 10, model_kwargs={"width": 3})
    with pytest.raises(ValueError, match="label_smoothing=1"):
        lc.ClassificationModule("conv4", 10, label_smoothing=1.0)
