"""Losses of features compute what their functions do, on what their adapters make."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Size, Tensor

import lightning_compress as lc
from lightning_compress.distillation.loss import FeatureLoss
from lightning_compress.functional import feature_losses as functional

LAYERS = (("a", "b"),)
LABELS = torch.tensor([0, 1, 0])
SHAPES = [Size((3, 4)), Size((3, 6, 5)), Size((3, 7, 4, 4)), Size((3, 2, 8, 3))]


def feature(shape: Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("loss", [lc.FitNet, lc.SimilarityPreserving, lc.RKD, lc.CRD])
def test_features_of_any_kind(loss: type[FeatureLoss]) -> None:
    specification = loss(LAYERS)
    for one, other in itertools.product(SHAPES, repeat=2):
        student, teacher = feature(one, 0).requires_grad_(), feature(other, 1).requires_grad_()
        adapter = specification.adapter(one, other)
        value = specification(*adapter(student, teacher), LABELS)
        assert value.shape == ()
        assert value.dtype == torch.float32
        value.backward()
        assert student.grad.abs().sum() > 0
        assert teacher.grad is None
        assert all(p.grad is not None for p in adapter.parameters())


@pytest.mark.parametrize("one", SHAPES, ids=str)
@pytest.mark.parametrize("other", SHAPES, ids=str)
def test_attention_is_of_one_kind(one: Size, other: Size) -> None:
    loss = lc.AttentionTransfer(LAYERS)
    if len(one) == len(other) > 2:
        student, teacher = feature(one, 0), feature(other, 1)
        value = loss(*loss.adapter(one, other)(student, teacher), None)
        assert torch.equal(value, functional.attention_transfer(student, teacher))
    else:
        with pytest.raises(ValueError, match="of one kind") as caught:
            loss.adapter(one, other)
        assert f"{tuple(one)} with {tuple(other)}" in str(caught.value)


@pytest.mark.parametrize("loss", [lc.FitNet, lc.AttentionTransfer, lc.SimilarityPreserving, lc.RKD, lc.CRD])
@pytest.mark.parametrize("shape", [Size((3,)), Size((3, 2, 4, 4, 4)), Size(())], ids=str)
def test_what_is_no_feature_is_refused(loss: type[FeatureLoss], shape: Size) -> None:
    for shapes in ((shape, SHAPES[2]), (SHAPES[2], shape)):
        with pytest.raises(ValueError, match="cannot be compared") as caught:
            loss(LAYERS).adapter(*shapes)
        assert str(tuple(shape)) in str(caught.value)


@pytest.mark.parametrize("loss", [lc.AttentionTransfer, lc.SimilarityPreserving, lc.RKD])
def test_nothing_to_learn(loss: type[FeatureLoss]) -> None:
    adapter = loss(LAYERS).adapter(SHAPES[2], SHAPES[3])
    assert not adapter.state_dict()
    student, teacher = adapter(feature(SHAPES[2], 0), feature(SHAPES[3], 1).requires_grad_())
    assert torch.equal(student, feature(SHAPES[2], 0))
    assert torch.equal(teacher, feature(SHAPES[3], 1))
    assert not teacher.requires_grad


def test_fields_go_where_they_belong() -> None:
    student, teacher = feature(SHAPES[2], 0), feature(SHAPES[2], 1)
    assert torch.equal(lc.FitNet(LAYERS)(student, teacher, None), functional.hint(student, teacher))
    assert torch.equal(
        lc.SimilarityPreserving(LAYERS)(student, teacher, None), functional.similarity_preserving(student, teacher)
    )
    assert torch.equal(
        lc.RKD(LAYERS, 2.0, 3.0)(student, teacher, None), functional.relational(student, teacher, 2.0, 3.0)
    )
    student, teacher = student.flatten(1), teacher.flatten(1)
    for labels in (None, LABELS):
        expected = functional.contrastive(student, teacher, labels, 0.5)
        assert torch.equal(lc.CRD(LAYERS, temperature=0.5)(student, teacher, labels), expected)
    embeddings = lc.CRD(LAYERS, dim=9).adapter(SHAPES[0], SHAPES[3])(feature(SHAPES[0], 0), feature(SHAPES[3], 1))
    assert [x.shape for x in embeddings] == [(3, 9), (3, 9)]
