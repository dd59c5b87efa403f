from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer

import lightning_compress as lc
from lightning_compress.distillation.teacher_loading import load_module


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file that the import of the module ``payload`` writes, as code of an attacker would."""
    (tmp_path / "payload.py").write_text(
        f"import torch\nopen({str(tmp_path / 'mark')!r}, 'w').close()\nclass Optimizer(torch.optim.SGD): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mark"
    sys.modules.pop("payload", None)


def checkpoint(folder: Path, **hparams: Any) -> Path:
    """A checkpoint of LeNet-5 with more hyperparameters, as a LightningCLI writes them."""
    module = lc.ClassificationModule("lenet5", 10)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(folder / "plain.ckpt", weights_only=True)
    stored = torch.load(folder / "plain.ckpt", weights_only=True)
    stored["hyper_parameters"].update({"_instantiator": "lightning.pytorch.cli.instantiate_module", **hparams})
    torch.save(stored, folder / "cli.ckpt")
    return folder / "cli.ckpt"


def test_a_class_in_the_working_directory_is_not_imported(tmp_path: Path, mark: Path) -> None:
    path = checkpoint(tmp_path, optimizer={"class_path": "payload.Optimizer", "init_args": {"lr": 0.1}})
    for load in (
        lambda: lc.ClassificationModule.load_from_checkpoint(path),
        lambda: lc.ClassificationModule.load_from_checkpoint(io.BytesIO(path.read_bytes()), weights_only=True),
        lambda: load_module(str(path), "teacher"),
    ):
        with pytest.raises(ValueError, match=r"class_path='payload\.Optimizer' is not imported"):
            load()
    assert not mark.exists()
    import payload

    with torch.serialization.safe_globals([payload.Optimizer]):
        module = lc.ClassificationModule.load_from_checkpoint(path)
    assert type(module.optimizer([torch.nn.Parameter(torch.zeros(1))])) is payload.Optimizer


def test_losses_of_a_distillation_module(tmp_path: Path, mark: Path) -> None:
    path = checkpoint(tmp_path, losses={"kd": {"class_path": "payload.Optimizer", "init_args": {}}}, student="lenet5")
    with pytest.raises(ValueError, match=r"class_path='payload\.Optimizer' is not imported"):
        lc.DistillationModule.load_from_checkpoint(path)
    stored = torch.load(path, weights_only=True)
    del stored["hyper_parameters"]["_instantiator"]
    torch.save(stored, path)
    with pytest.raises(ValueError, match=r"class_path='payload\.Optimizer' is not imported"):
        lc.DistillationModule.load_from_checkpoint(path)
    assert not mark.exists()


def test_classes_of_torch_are_imported(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, optimizer={"class_path": "torch.optim.Adam", "init_args": {"lr": 0.1}})
    for source in (path, str(path), io.BytesIO(path.read_bytes())):
        module = lc.ClassificationModule.load_from_checkpoint(source)
        assert type(module.optimizer(module.parameters())) is torch.optim.Adam
