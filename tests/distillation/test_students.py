from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn

import lightning_compress as lc
from lightning_compress.distillation.students import build_student, check_student, infer_num_classes, student_hparams
from tests.cases import Net, TwoPlayers

SMALL = {"in_chans": 1, "img_size": 8}


def network(classes: int = 3) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Linear(9, classes), nn.Softmax(1))


def make(student: Any, teachers: list[lc.Teacher] | None = None, **options: Any) -> Any:
    defaults = {"num_classes": None, "optimizer": None, "lr_scheduler": None, "model_kwargs": None}
    return build_student(student, teachers or [], **{**defaults, **options})


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params)


def step(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1)


def test_a_lightning_module_stays_itself() -> None:
    module = Net()
    assert make(module) is module
    for options in ({"optimizer": adam}, {"lr_scheduler": step}, {"model_kwargs": SMALL}, {"num_classes": 4}):
        with pytest.raises(ValueError, match="student Net is a LightningModule, which has a network and an optimizer"):
            make(module, **options)


def test_a_name() -> None:
    found = make("conv4", num_classes=6, optimizer=adam, lr_scheduler=step, model_kwargs=SMALL)
    assert isinstance(found, lc.ClassificationModule)
    assert found(torch.zeros(2, 1, 8, 8)).shape == (2, 6)
    assert (found.optimizer, found.lr_scheduler) == (adam, step)
    assert student_hparams(found) == {
        "model": "conv4", "num_classes": 6, "label_smoothing": 0.0, "model_kwargs": SMALL, "mixup": None,
        "small_input": False,
    }  # fmt: skip
    again = make(student_hparams(found))
    assert again(torch.zeros(2, 1, 8, 8)).shape == (2, 6)


def test_a_network() -> None:
    own = network()
    found = make(own, optimizer=adam)
    assert found.model is own
    assert found.val_acc.num_classes == 3
    assert student_hparams(found) is None
    assert student_hparams(Net()) is None


def test_arguments_are_left_as_they_were() -> None:
    given = {"model": "conv4", "num_classes": 4, "model_kwargs": SMALL, "label_smoothing": 0.25}
    found = make(given, [lc.Teacher(network(7))], num_classes=5, model_kwargs={"in_chans": 9})
    assert (found.val_acc.num_classes, found.label_smoothing) == (4, 0.25)
    assert given == {"model": "conv4", "num_classes": 4, "model_kwargs": SMALL, "label_smoothing": 0.25}


@pytest.mark.parametrize("kind", [str, Path])
def test_a_checkpoint(tmp_path: Path, kind: type) -> None:
    module = lc.ClassificationModule("conv4", 3, model_kwargs=SMALL)
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=0, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    found = make(kind(tmp_path / "a.ckpt"), optimizer=adam, lr_scheduler=step)
    assert all(map(torch.equal, found.state_dict().values(), module.state_dict().values()))
    assert (found.optimizer, found.lr_scheduler) == (adam, step)
    assert found.training
    assert student_hparams(found)["model"] == "conv4"


@pytest.mark.parametrize(
    ("student", "teachers", "given", "classes"),
    [
        ("conv4", [lc.Teacher(network(7))], None, 7),
        ("conv4", [lc.Teacher(network(7))], 5, 5),
        ("conv4", [lc.Teacher("a"), lc.Teacher("b", num_classes=4)], None, 4),
        ("conv4", [lc.Teacher("a", num_classes=2), lc.Teacher(network(7))], None, 2),
        ("conv4", [lc.Teacher(lc.ClassificationModule(network(), 8))], None, 8),
    ],
)
def test_classes_are_those_of_the_teacher(
    student: str, teachers: list[lc.Teacher], given: int | None, classes: int
) -> None:
    found = make(student, teachers, num_classes=given, model_kwargs=SMALL)
    assert found(torch.zeros(2, 1, 8, 8)).shape == (2, classes)


def test_a_network_has_its_own_classes() -> None:
    assert make(network(3), [lc.Teacher(network(7))]).val_acc.num_classes == 3


def test_number_of_classes() -> None:
    assert infer_num_classes(timm.create_model("test_vit", num_classes=5)) == 5
    assert infer_num_classes(lc.ClassificationModule(network(3), 3)) == 3
    assert infer_num_classes(network(4)) == 4
    assert infer_num_classes(Net()) == 4
    assert infer_num_classes(nn.Conv2d(3, 4, 1)) is None


def test_what_cannot_be_a_student() -> None:
    cases: list[tuple[Any, str]] = [
        (
            lambda: make("conv4"),
            "Neither the student nor the teacher determines the number of classes: give num_classes",
        ),
        (lambda: make("conv4", [lc.Teacher("a")]), "give num_classes"),
        (lambda: make("conv44", num_classes=3), "model='conv44' is not a timm network; did you mean 'conv4'"),
        (lambda: make("conv4", num_classes=3, model_kwargs={"width": 3}), "are not supported by 'conv4'"),
        (lambda: make("nowhere.ckpt"), "student='nowhere.ckpt' is not a checkpoint of a ClassificationModule"),
        (
            lambda: make(None),
            "student=None is not supported: give a LightningModule, a timm name, a network or a .ckpt file",
        ),
        (lambda: make(3, num_classes=3), "student=3 is not supported"),
        (
            lambda: check_student(TwoPlayers()),
            "student TwoPlayers uses manual optimization, .*: use automatic optimization",
        ),
    ]
    for attempt, words in cases:
        with pytest.raises(ValueError, match=words) as error:
            attempt()
        assert "\n" not in str(error.value)
    check_student(Net())


def test_any_lightning_module_will_do() -> None:
    class Bare(LightningModule):
        pass

    check_student(Bare())
    assert infer_num_classes(Bare()) is None
