from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from torch import nn

import lightning_compress as lc


def test_what_is_usual() -> None:
    teacher = lc.Teacher("resnet18")
    assert (teacher.checkpoint, teacher.num_classes, teacher.precision, teacher.compile) == (None, None, None, False)
    assert (teacher.model_kwargs, teacher.normalization, teacher.input_size) == ({}, None, None)
    assert lc.Teacher("a").model_kwargs is not lc.Teacher("a").model_kwargs


def test_lists_and_paths_become_what_they_should_be() -> None:
    teacher = lc.Teacher("resnet18", checkpoint=Path("a") / "b.pt", input_size=[8, 12])
    assert (teacher.checkpoint, teacher.input_size) == ("a/b.pt", (8, 12))
    assert lc.Teacher(Path("a.ckpt")).model == "a.ckpt"
    network = nn.Linear(2, 2)
    assert lc.Teacher(network, precision="bf16", compile=True, input_size=(1, 1)).model is network


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"model": "a", "precision": "fp8"}, r"Teacher\(precision='fp8'\) must be 'bf16', 'fp16' or None"),
        ({"model": "a.ckpt", "checkpoint": "b.pt"}, "leave out checkpoint, num_classes and model_kwargs"),
        ({"model": Path("a.ckpt"), "num_classes": 3}, "leave out checkpoint"),
        ({"model": nn.Linear(2, 2), "num_classes": 3}, "has its weights and arguments already"),
        ({"model": nn.Linear(2, 2), "model_kwargs": {"in_chans": 1}}, "leave out checkpoint"),
        ({"model": "a", "input_size": (224,)}, r"Teacher\(input_size=\(224,\)\) must be a height and a width"),
        ({"model": "a", "input_size": (224, 0)}, "such as .224, 224."),
        ({"model": "a", "input_size": [3, 224, 224]}, "must be a height and a width"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        lc.Teacher(**arguments)
    assert "\n" not in str(error.value)
