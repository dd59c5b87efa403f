"""Logit losses at positions of any shape, averaged over heads, and regressions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.distillation.batch_formats import Annotations
from lightning_compress.distillation.logit_averaging import average_by_confidence, average_uniformly
from lightning_compress.distillation.logit_comparison import LogitComparison
from lightning_compress.distillation.logit_formats import find_positions
from lightning_compress.distillation.peer import PeerNetwork

LOSSES = {"kd": lc.KD(), "dkd": lc.DKD(), "dist": lc.DIST(standardize=True), "mse": lc.LogitMSE()}


def compare(
    student: Any, *teachers: Any, labels: tuple[Tensor, ...] = (), mask: Tensor | None = None, **options: Any
) -> dict[str, Tensor]:
    options = {"losses": LOSSES, "combine": average_uniformly, "class_dim": None} | options
    return LogitComparison(**options)(student, teachers, [], Annotations(labels, mask), {})


def draw(*shape: int) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1, 2)]


@pytest.mark.parametrize(("shape", "dim"), [((4, 6, 5), 2), ((4, 5, 3, 2), 1), ((2, 5, 2, 2, 3), 1), ((8, 5), 1)])
@pytest.mark.parametrize("combine", [average_uniformly, average_by_confidence])
def test_as_if_flattened(shape: tuple[int, ...], dim: int, combine: Any) -> None:
    student, *teachers = draw(*shape)
    where = [size for index, size in enumerate(shape) if index != dim]
    labels = torch.randint(5, where, generator=torch.Generator().manual_seed(3))
    found = compare(student, *teachers, labels=(labels,), combine=combine)
    student, *teachers = (each.movedim(dim, -1).reshape(-1, 5) for each in (student, *teachers))
    combined = combine(teachers, labels.flatten())
    for name in ("kd", "dkd", "dist"):
        torch.testing.assert_close(found[name], LOSSES[name](student, combined, labels.flatten()))
    torch.testing.assert_close(found["mse"], F.mse_loss(student, (teachers[0] + teachers[1]) / 2))


def test_gradients_are_zero_at_padding() -> None:
    student, teacher, _ = draw(2, 4, 5)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    labels = torch.tensor([[0, -100, 1, 1], [1, 2, 3, -100]])
    student.requires_grad_()
    sum(compare(student, teacher, labels=(labels,), mask=mask).values()).backward()
    is_kept = student.grad.abs().sum(2) > 0
    assert is_kept.tolist() == [[True, False, False, False], [True, True, True, False]]


def test_a_batch_of_padding_alone() -> None:
    student, teacher, _ = draw(2, 4, 5)
    found = compare(student.requires_grad_(), teacher, labels=(torch.full((2, 4), -100),))
    assert set(found.values()) == {torch.tensor(0.0)} or all(value == 0 for value in found.values())
    sum(found.values()).backward()
    assert not student.grad.any()


def test_heads_are_averaged() -> None:
    (a, b, _), (c, d, _) = draw(3, 5), draw(3, 9)
    losses = {"kd": lc.KD()}
    found = compare({"start_logits": a, "end_logits": c}, {"start_logits": b, "end_logits": d}, losses=losses)["kd"]
    torch.testing.assert_close(found, (lc.KD()(a, b, None) + lc.KD()(c, d, None)) / 2)
    only = compare((a, a + 1), b, losses=losses)["kd"]  # auxiliary logits, in training alone
    torch.testing.assert_close(only, lc.KD()(a, b, None))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 4, 1), (3, 1, 4, 4)])
@pytest.mark.parametrize("loss", [lc.KD(), lc.DKD(), lc.DIST(standardize=True)], ids=lambda loss: type(loss).__name__)
def test_one_class_has_no_probabilities(shape: tuple[int, ...], loss: Any) -> None:
    student, teacher, _ = draw(*shape)
    labels = (torch.zeros(shape[:1], dtype=torch.long),) if len(shape) < 3 else ()
    if len(shape) > 2:
        labels = (torch.zeros(torch.Size(shape[:1]) + torch.Size([4] * (len(shape) - 2)), dtype=torch.long),)
    words = rf"{type(loss).__name__} compares probabilities of classes, but the outputs have one class.*lc.LogitMSE\(\)"
    with pytest.raises(ValueError, match=words):
        compare(student, teacher, losses={"a": loss}, labels=labels)
    found = compare(student, teacher, losses={"a": lc.LogitMSE()}, labels=labels)
    torch.testing.assert_close(found["a"], F.mse_loss(student, teacher))


def test_targets_that_are_no_probabilities() -> None:
    student, teacher, target = draw(4, 3)
    with pytest.warns(UserWarning, match="not probabilities of classes, but KD compares these: use lc.LogitMSE"):
        compare(student, teacher, losses={"kd": lc.KD()}, labels=(target,))


@pytest.mark.parametrize(
    ("losses", "target"),
    [({"mse": lc.LogitMSE()}, torch.randn(4, 3)), ({"kd": lc.KD()}, torch.rand(4, 3).softmax(1))],
)
@pytest.mark.filterwarnings("error")
def test_other_targets_need_no_warning(losses: dict[str, Any], target: Tensor) -> None:
    student, teacher, _ = draw(4, 3)
    compare(student, teacher, losses=losses, labels=(target,))


def test_a_peer_learns_at_the_same_positions() -> None:
    network = nn.Linear(2, 5)
    peer, x = PeerNetwork(network, name="peer"), torch.randn(3, 4, 2)
    labels = torch.tensor([[0, -100, 1, 1], [1, 2, 3, -100], [4, 4, 4, 4]])
    student = torch.randn(3, 4, 5)
    output = peer.forward((x,), {})
    at = find_positions(student, Annotations((labels,)))
    peer.accumulate([(at.rows(student), at)], [(0.5, lc.KD())])
    rows, own = at.rows(output), at.rows(student)
    expected = F.cross_entropy(output.movedim(2, 1), labels) + 0.5 * lc.KD()(rows, own, None)
    torch.testing.assert_close(peer._loss, expected)
