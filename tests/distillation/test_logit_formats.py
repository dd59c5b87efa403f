from __future__ import annotations

from collections import OrderedDict, UserDict, namedtuple
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import QuestionAnsweringModelOutput, TokenClassifierOutput

from lightning_compress.distillation.batch_formats import Annotations
from lightning_compress.distillation.logit_formats import extract_logits, find_positions, pair_heads

LOGITS, OTHER = torch.randn(2, 3), torch.randn(2, 3)
IMAGES = torch.randn(2, 3, 4, 4)
SCALAR = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        (LOGITS, [LOGITS]),
        (IMAGES, [IMAGES]),
        (LOGITS[:, 0], "1-D"),
        ({"logits": LOGITS, "loss": SCALAR}, [LOGITS]),
        (OrderedDict(hidden=IMAGES, logits=LOGITS), [LOGITS]),
        (UserDict(logits=LOGITS), [LOGITS]),
        (SimpleNamespace(logits=LOGITS, loss=None), [LOGITS]),
        (namedtuple("Output", "loss logits")(None, LOGITS), [LOGITS]),
        (namedtuple("Inception", "logits aux_logits")(LOGITS, None), [LOGITS]),
        (TokenClassifierOutput(loss=SCALAR, logits=IMAGES), [IMAGES]),
        (QuestionAnsweringModelOutput(start_logits=LOGITS, end_logits=OTHER), [LOGITS, OTHER]),
        ({"cls_logits": [LOGITS, IMAGES], "boxes": [IMAGES]}, [LOGITS, IMAGES]),
        (OrderedDict(out=IMAGES, aux=IMAGES), [IMAGES]),
        ((LOGITS, OTHER), [LOGITS, OTHER]),
        ([LOGITS], [LOGITS]),
        ((LOGITS, IMAGES), [LOGITS]),  # features
        ((SCALAR, LOGITS, torch.randn(2, 8)), [LOGITS]),
        ([IMAGES, IMAGES[:, :, ::2, ::2]], "levels"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_forms_of_logits(output: Any, expected: Any) -> None:
    found = extract_logits(output, "teacher")
    if isinstance(expected, str):
        assert len(found) == (1 if expected == "1-D" else 2)
    else:
        assert [id(tensor) for tensor in found] == [id(tensor) for tensor in expected]


@pytest.mark.parametrize(
    ("output", "form"),
    [
        ({"scores": LOGITS}, "type dict"),
        ({}, "type dict"),
        ([], "type list"),
        ([{"boxes": LOGITS}], "type list"),
        (SimpleNamespace(scores=LOGITS), "type SimpleNamespace"),
        (None, "type NoneType"),
        (LOGITS.argmax(1), r"shape \(2,\)"),
        (SCALAR, r"shape \(\)"),
    ],
)
@pytest.mark.parametrize(("owner", "option"), [("teacher", r"Teacher\(output=...\)"), ("student", "output=...")])
def test_what_holds_no_logits(output: Any, form: str, owner: str, option: str) -> None:
    words = rf"The {owner} must return logits .*, not an output of {form}: name the module .* with {option}, or wrap"
    with pytest.raises(ValueError, match=words) as error:
        extract_logits(output, owner)
    assert "\n" not in str(error.value)


def test_heads_that_only_one_has_are_left_out() -> None:
    assert len(pair_heads([LOGITS, OTHER], [[OTHER, LOGITS]])) == 2
    (pair,) = pair_heads([LOGITS, OTHER], [[OTHER], [OTHER, LOGITS]])
    assert pair[0] is LOGITS
    assert all(torch.equal(each, OTHER) for each in pair[1])
    with pytest.raises(ValueError, match="student returns 3 tensors of logits and the teacher 2: name the student's"):
        pair_heads([LOGITS] * 3, [[LOGITS] * 2])
    with pytest.raises(ValueError, match=r"shape \(2, 3\) and the teacher of shape \(2, 3, 4, 4\)"):
        pair_heads([LOGITS], [[IMAGES]])


def positions(shape: tuple[int, ...], *labels: Tensor, mask: Tensor | None = None, **options: Any) -> Any:
    return find_positions(torch.empty(shape), Annotations(labels, mask), **options)


def integers(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.long)


@pytest.mark.parametrize(
    ("shape", "labels", "dim"),
    [
        ((2, 5), [], 1),
        ((2, 7, 5), [], 2),
        ((2, 5, 7), [integers(2, 7)], 1),
        ((2, 7, 7), [integers(2, 7)], 2),
        ((2, 7, 5), [integers(2)], 2),
        ((2, 5, 7, 6), [], 1),
        ((2, 5, 7, 6), [integers(2, 7, 6)], 1),
        ((2, 7, 6, 5), [integers(2, 7, 6)], 3),
        ((2, 5, 7, 6, 4), [integers(2, 1, 7, 6, 4)], 1),
    ],
)
def test_dimension_of_the_classes(shape: tuple[int, ...], labels: list[Tensor], dim: int) -> None:
    found = positions(shape, *labels)
    assert found.class_dim == dim
    logits = torch.arange(float(torch.Size(shape).numel())).view(shape)
    assert torch.equal(found.rows(logits), logits.movedim(dim, -1).reshape(-1, shape[dim]))


def test_dimension_by_mask_and_by_hand() -> None:
    assert positions((2, 5, 7), mask=torch.ones(2, 7, dtype=torch.bool)).class_dim == 1
    assert positions((2, 84, 100), class_dim=1).class_dim == 1
    assert positions((2, 5, 7, 6), class_dim=-1).class_dim == 3
    assert positions((2, 5), class_dim=3).class_dim == 1
    for wrong in (0, 3, -3, -4):
        with pytest.raises(ValueError, match=rf"class_dim={wrong} is not a dimension of classes of logits \(2, 5, 7\)"):
            positions((2, 5, 7), class_dim=wrong)


def test_padding_and_ignored_labels_are_left_out() -> None:
    labels = torch.tensor([[0, -100, 2], [4, 5, 1]])
    mask = torch.tensor([[True, True, False], [True, True, True]])
    logits = torch.randn(2, 3, 5)
    found = positions((2, 3, 5), labels, mask=mask)
    assert torch.equal(found.rows(logits), torch.stack([logits[0, 0], logits[1, 0], logits[1, 2]]))
    assert found.labels.tolist() == [0, 4, 1]
    assert positions((2, 3, 5), mask=mask).rows(logits).shape == (5, 5)
    assert positions((2, 3, 5), labels).rows(logits).shape == (4, 5)
    flat = positions((6, 5), labels)  # the network has flattened its tokens
    assert torch.equal(flat.rows(logits.flatten(0, 1)), logits.flatten(0, 1)[flat.kept])
    assert flat.labels.tolist() == [0, 2, 4, 1]


def test_samples_without_a_label_are_kept() -> None:
    found = positions((3, 5), torch.tensor([0, -100, 7]))
    assert found.kept is None
    assert found.labels.tolist() == [0, -100, 7]


def test_labels_of_a_regression_are_no_classes() -> None:
    assert positions((2, 1, 3, 3), torch.full((2, 3, 3), 9)).kept.all()


def test_probabilities() -> None:
    soft = torch.rand(2, 5, 7, 6)
    found = positions((2, 5, 7, 6), soft)
    assert torch.equal(found.labels, soft.movedim(1, -1).reshape(-1, 5))
    assert positions((2, 5), torch.rand(2, 3)).labels is None


def test_each_head_has_its_labels() -> None:
    start, end = torch.tensor([1, 2]), torch.tensor([3, 4])
    assert [positions((2, 9), start, end, head=h, num_heads=2).labels.tolist() for h in (0, 1)] == [[1, 2], [3, 4]]
    assert [positions((2, 9), start, head=h, num_heads=2).labels.tolist() for h in (0, 1)] == [[1, 2], [1, 2]]
