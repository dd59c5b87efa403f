"""Mistakes with data, files, services and flags: one sentence that names the thing and the way out, exit code 2."""

from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import pytest
import torch
import wandb
import yaml
from PIL import UnidentifiedImageError

from lightning_compress.cli import main
from lightning_compress.cli.errors import input_message
from lightning_compress.export import requirements
from tests.cli.conftest import RECIPE
from tests.cli.test_run import the_run

ONLINE = "--trainer.logger={class_path: WandbLogger, init_args: {project: tests}}"
MODULES = """
import torch
from lightning.pytorch import LightningModule
from lightning_compress import ClassificationModule
from lightning_compress.data import DigitsDataModule

class WrongLabels(DigitsDataModule):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0], batch[1] + 7

class Untested(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    def training_step(self, batch, batch_idx):
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
"""


@pytest.fixture(autouse=True)
def modules(recipe):
    Path("modules.py").write_text(MODULES)


@pytest.mark.parametrize("command", ["fit", "run"])
def test_labels_out_of_range(command, error_message):
    arguments = ["small.yaml"] if command == "run" else ["--config=small.yaml"]
    message = error_message(command, *arguments, "--data.class_path=modules.WrongLabels")
    assert "which the model has no class for: set num_classes" in message


def test_wrong_number_of_channels(error_message):
    message = error_message("fit", "--config=small.yaml", "--model.model_kwargs={in_chans: 3, img_size: 8}")
    assert "The model has 3 input channels, the data has 1: set --model.model_kwargs.in_chans=1" in message


def test_online_without_login(error_message, monkeypatch):
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("NETRC", str(Path("netrc").absolute()))
    wandb.teardown()
    try:
        message = error_message("fit", "--config=small.yaml", ONLINE)
    finally:
        wandb.teardown()
    assert message.startswith("W&B: ")
    assert "run 'wandb login', or log offline with WANDB_MODE=offline" in message


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            UnidentifiedImageError("cannot identify image file 'a/b.png'"),
            "corrupt: cannot identify image file 'a/b.png'",
        ),
        (URLError("Name or service not known"), "connect to the network"),
        (PermissionError(13, "Permission denied", "/data/x"), "/data/x cannot be written"),
        (OSError(30, "Read-only file system", "runs"), "runs cannot be written (Read-only file system)"),
    ],
)
def test_errors_of_libraries_are_read_from_their_objects(error, words):
    wrapped = RuntimeError("Caught an error in a worker")
    wrapped.__cause__ = error
    assert words in input_message(wrapped)
    assert input_message(RuntimeError("a bug")) == ""


def test_a_directory_that_cannot_be_made(error_message):
    Path("file").touch()
    message = error_message("fit", "--config=small.yaml", "--trainer.default_root_dir=file/below")
    assert "file" in message
    assert "cannot be written (Not a directory): choose another directory" in message


def test_files_that_are_no_checkpoint(error_message, capsys):
    Path("notes.ckpt").write_text("101")
    message = error_message("test", "--config=small.yaml", "--ckpt_path=notes.ckpt")
    assert "notes.ckpt is not a checkpoint of PyTorch: give a .ckpt file" in message
    main(["run", "small.yaml"])
    packed = the_run() / "model.packed"
    message = error_message("fit", "--config=small.yaml", f"--ckpt_path={packed}")
    assert f"is a packed file and not a checkpoint: continue from its run with --after={packed.parent}" in message


def test_a_checkpoint_is_one():
    main(["fit", "--config=small.yaml"])
    (checkpoint,) = Path("runs/fit").glob("*/checkpoints/*.ckpt")
    main(["test", "--config=small.yaml", f"--ckpt_path={checkpoint}"])
    torch.save({"state_dict": {}}, "old.pt", _use_new_zipfile_serialization=False)
    assert Path("old.pt").read_bytes()[:1] == b"\x80"


@pytest.mark.parametrize("key", ["after", "teacher"])
def test_keys_of_another_command(key, error_message):
    message = error_message("fit", "--config=small.yaml", f"--{key}=digits/teacher")
    assert f"{key}=digits/teacher is a key of the command 'run' and has no effect on 'fit'" in message


def test_flags(error_message):
    fit = ("fit", "--config=small.yaml")
    assert "--trainer.max_epochs is given 2 times" in error_message(
        *fit, "--trainer.max_epochs=1", "--trainer.max_epochs=2"
    )
    assert "Unknown key trainer.max_ep" in error_message(*fit, "--trainer.max_ep=1")
    assert "Unknown key pruning.spars" in error_message(*fit, "--pruning.spars=0.5")
    assert "pruning" in error_message(*fit, '--pruning={"sparsity": 0.5')
    assert "--mean_bits=40.0 must be at most 8, the largest of --bits." in error_message(
        "sensitivity", "--config=small.yaml", "--mean_bits=40"
    )


def test_a_module_without_test_step(error_message, capsys):
    tree = yaml.safe_load(RECIPE)
    Path("untested.yaml").write_text(yaml.safe_dump({**tree, "model": {"class_path": "modules.Untested"}}))
    assert "test_step" in error_message("test", "--config=untested.yaml")
    main(["run", "untested.yaml"])
    assert "packed file" in capsys.readouterr().out


def test_a_missing_extra_is_named_before_the_training(error_message, monkeypatch):
    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    message = error_message("run", "small.yaml", "--quantization={targets: {module: model}}")
    assert "pip install 'lightning-compress[export]'" in message
    assert not list(Path("runs").rglob("*.ckpt"))
