from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_compress.distillation.batch_formats import extract_labels, extract_logits

LOGITS = torch.randn(2, 3)
CLASSES = torch.tensor([0, 2])
SOFT = torch.rand(2, 3)
IMAGES = torch.randn(2, 3, 4, 4)


@pytest.mark.parametrize(
    "output",
    [
        LOGITS,
        {"logits": LOGITS, "loss": torch.tensor(1.0)},
        OrderedDict(hidden=IMAGES, logits=LOGITS),
        UserDict(logits=LOGITS),
        SimpleNamespace(logits=LOGITS, loss=None),
        namedtuple("Output", "loss logits")(None, LOGITS),
    ],
    ids=lambda output: type(output).__name__,
)
def test_forms_of_logits(output: Any) -> None:
    assert extract_logits(output, "teacher") is LOGITS


@pytest.mark.parametrize(
    ("output", "form"),
    [
        ((LOGITS, IMAGES), "type tuple"),
        ([LOGITS], "type list"),
        ({"scores": LOGITS}, "type dict"),
        ({"logits": [LOGITS]}, "type dict"),
        ({}, "type dict"),
        (SimpleNamespace(scores=LOGITS), "type SimpleNamespace"),
        (None, "type NoneType"),
        (IMAGES, r"shape \(2, 3, 4, 4\)"),
        ({"logits": LOGITS[0]}, r"shape \(3,\)"),
        (torch.tensor(1.0), r"shape \(\)"),
    ],
)
def test_what_holds_no_logits(output: Any, form: str) -> None:
    words = (
        rf"The teacher must return logits of shape \(N, C\), not an output of {form}: name the module .*output=..., or"
    )
    with pytest.raises(ValueError, match=words) as error:
        extract_logits(output, "teacher")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        ((IMAGES, CLASSES), CLASSES),
        ([IMAGES, CLASSES], CLASSES),
        ((IMAGES, CLASSES.int(), "path", 3), "second"),
        ((IMAGES, SOFT), SOFT),
        ([IMAGES, SOFT.double()], "second"),
        (namedtuple("Batch", "x y")(IMAGES, CLASSES), CLASSES),
        (((IMAGES, IMAGES), CLASSES), CLASSES),
        (({"a": IMAGES}, SOFT), SOFT),
        ({"image": IMAGES, "label": CLASSES}, CLASSES),
        ({"input_ids": IMAGES, "labels": SOFT}, SOFT),
    ],
)
def test_labels(batch: Any, labels: Tensor | str) -> None:
    assert extract_labels(batch) is (batch[1] if isinstance(labels, str) else labels)


@pytest.mark.parametrize(
    "batch",
    [
        IMAGES,
        torch.stack([CLASSES, CLASSES]),
        (IMAGES,),
        [],
        "ab",
        None,
        {"image": IMAGES, "target": CLASSES},
        {"image": IMAGES, "label": "cat"},
        {0: IMAGES, 1: CLASSES},
        (IMAGES, {"label": CLASSES}),
        (IMAGES, [0, 2]),
        (IMAGES, None),
        (IMAGES, torch.rand(2)),
        (IMAGES, torch.tensor(3)),
        (IMAGES, torch.ones(2, 3, dtype=torch.long)),
        (IMAGES, IMAGES),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_no_labels(batch: Any) -> None:
    assert extract_labels(batch) is None
