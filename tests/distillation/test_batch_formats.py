from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.distillation.batch_formats import Annotations, extract_annotations, named_arguments

CLASSES = torch.tensor([0, 2])
SOFT = torch.rand(2, 3)
IMAGES = torch.randn(2, 3, 4, 4)
IDS, MASK, TAGS = (torch.ones(2, 5, dtype=torch.long) for _ in range(3))


def is_same(found: tuple[Tensor, ...], expected: list[Tensor]) -> bool:
    return [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]


@pytest.mark.parametrize(
    ("batch", "labels"),
    [
        ((IMAGES, CLASSES), [CLASSES]),
        ([IMAGES, CLASSES], [CLASSES]),
        ((IMAGES, CLASSES, "path", 3), [CLASSES]),
        ((IMAGES, SOFT), [SOFT]),
        (namedtuple("Batch", "x y")(IMAGES, CLASSES), [CLASSES]),
        (((IMAGES, IMAGES), CLASSES), [CLASSES]),
        (({"a": IMAGES}, SOFT), [SOFT]),
        ({"image": IMAGES, "label": CLASSES}, [CLASSES]),
        (UserDict(input_ids=IDS, labels=TAGS), [TAGS]),
        ({"start_positions": CLASSES, "end_positions": SOFT}, [CLASSES, SOFT]),
        ((IDS, MASK, TAGS), [MASK, TAGS]),
        ((IMAGES, MASK.bool(), TAGS), [TAGS]),  # a mask
    ],
)
def test_labels(batch: Any, labels: list[Tensor]) -> None:
    assert is_same(extract_annotations(batch, {}).labels, labels)


def test_inputs_of_the_network_are_the_last_to_be_labels() -> None:
    assert is_same(extract_annotations((IDS, MASK, TAGS), {"ids": IDS, "m": MASK}).labels, [TAGS, MASK])
    assert is_same(extract_annotations((IMAGES, CLASSES), {"x": IMAGES, "y": CLASSES}).labels, [CLASSES])
    assert is_same(extract_annotations((IDS, MASK), {"labels": TAGS}).labels, [TAGS, MASK])


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
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_no_labels(batch: Any) -> None:
    assert extract_annotations(batch, {}) == Annotations()


@pytest.mark.parametrize("labels", [torch.rand(2), torch.tensor(3), IDS, IMAGES], ids=lambda labels: str(labels.shape))
def test_labels_that_are_not_of_samples(labels: Tensor) -> None:
    assert Annotations((labels,)).sample_labels is None


def test_labels_of_samples() -> None:
    assert Annotations((CLASSES, SOFT)).sample_labels is CLASSES
    assert Annotations((SOFT,)).sample_labels is SOFT
    assert Annotations().sample_labels is None


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"attention_mask": torch.tensor([[1, 0]])}, [[True, False]]),
        ({"src_key_padding_mask": torch.tensor([[False, True]])}, [[True, False]]),
        ({"attention_mask": torch.tensor([[1, 0]]), "decoder_attention_mask": torch.tensor([[0, 1]])}, [[False, True]]),
        ({"attention_mask": torch.tensor([[1, 0]]), "decoder_attention_mask": None}, None),
        ({"attention_mask": None}, None),
        ({}, None),
    ],
)
def test_masks(arguments: dict[str, Any], expected: list[list[bool]] | None) -> None:
    found = extract_annotations(None, arguments).mask
    assert (None if found is None else found.tolist()) == expected
    found = extract_annotations(arguments, {}).mask  # in the batch alone
    assert (None if found is None else found.tolist()) == expected


def test_arguments_by_name() -> None:
    class Net(nn.Module):
        def forward(self, x: int, *rest: int, scale: int = 1, **options: int) -> None: ...

    assert named_arguments(Net(), (1, 2, 3), {"other": 4}) == {"x": 1, "0": 2, "1": 3, "scale": 1, "other": 4}
    assert named_arguments(Net(), (), {"scale": 4}) == {"scale": 4}  # without a signature that fits
