from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import lightning_compress as lc
from lightning_compress.distillation.logit_averaging import average_by_confidence, average_uniformly

NUM, CLASSES = 5, 4
both = pytest.mark.parametrize("combine", [average_uniformly, average_by_confidence])


def said(num_teachers: int, *, scale: float = 2.0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(num_teachers)
    logits = scale * torch.randn(num_teachers, NUM, CLASSES, generator=generator, dtype=torch.float64)
    return list(logits.to(dtype))


def labels(soft: bool) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    if soft:
        return torch.rand(NUM, CLASSES, generator=generator, dtype=torch.float64).softmax(1)
    return torch.randint(CLASSES, (NUM,), generator=generator)


def naive_mean(logits: Sequence[Tensor]) -> Tensor:
    return sum(each.softmax(1) for each in logits) / len(logits)


def naive_confidence(logits: Sequence[Tensor], truth: Tensor) -> Tensor:
    """Equation 3 of Zhang et al. 2022, sample by sample."""
    target = F.one_hot(truth, CLASSES).double() if truth.ndim == 1 else truth
    found = torch.zeros(NUM, CLASSES, dtype=torch.float64)
    for n in range(NUM):
        probabilities = [each[n].softmax(0) for each in logits]
        losses = [-sum(float(target[n, c]) * math.log(float(p[c])) for c in range(CLASSES)) for p in probabilities]
        whole = sum(math.exp(loss) for loss in losses)
        for p, loss in zip(probabilities, losses, strict=True):
            found[n] += (1 - math.exp(loss) / whole) / (len(logits) - 1) * p
    return found


@pytest.mark.parametrize("num_teachers", [2, 3, 5])
def test_mean(num_teachers: int) -> None:
    logits = said(num_teachers)
    torch.testing.assert_close(average_uniformly(logits, None).exp(), naive_mean(logits), rtol=1e-12, atol=0)


@pytest.mark.parametrize("soft", [False, True], ids=["classes", "probabilities"])
@pytest.mark.parametrize("num_teachers", [2, 3, 5])
def test_confidence(num_teachers: int, soft: bool) -> None:
    logits, truth = said(num_teachers), labels(soft)
    found = average_by_confidence(logits, truth)
    torch.testing.assert_close(found.exp(), naive_confidence(logits, truth), rtol=1e-11, atol=0)


def test_classes_are_probabilities_that_are_sure() -> None:
    logits, truth = said(3), labels(False)
    sure = F.one_hot(truth, CLASSES).double()
    torch.testing.assert_close(average_by_confidence(logits, sure), average_by_confidence(logits, truth))


@given(
    st.lists(st.lists(st.floats(-50, 50), min_size=3, max_size=3), min_size=2, max_size=4),
    st.integers(0, 2),
)
@settings(max_examples=50, deadline=None)
def test_probabilities_sum_to_one(logits: list[list[float]], label: int) -> None:
    given_logits = [torch.tensor([each], dtype=torch.float64) for each in logits]
    for combine in (average_uniformly, average_by_confidence):
        found = combine(given_logits, torch.tensor([label]))
        torch.testing.assert_close(found.exp().sum(1), torch.ones(1, dtype=torch.float64))
        shifted = combine([each + 3.0 for each in given_logits], torch.tensor([label]))
        torch.testing.assert_close(shifted, found, rtol=1e-6, atol=1e-9)


def test_trusts_the_teacher_that_knows() -> None:
    knows, errs = torch.tensor([[9.0, 0.0, 0.0, 0.0]]), torch.tensor([[0.0, 9.0, 0.0, 0.0]])
    found = average_by_confidence([knows, errs], torch.tensor([0]))
    torch.testing.assert_close(found.exp(), knows.softmax(1), rtol=0, atol=2e-3)


@both
def test_one_teacher_passes_through(combine: Callable[..., Tensor]) -> None:
    (logits,) = said(1)
    assert combine([logits], None) is logits


def test_confidence_needs_labels() -> None:
    with pytest.raises(ValueError, match="combine='confidence' compares teachers with labels, which the batches do"):
        average_by_confidence(said(2), None)


@both
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_other_dtypes_are_combined_in_single_precision(combine: Callable[..., Tensor], dtype: torch.dtype) -> None:
    logits = said(3, dtype=dtype)
    found = combine(logits, labels(False))
    assert found.dtype == torch.float32
    exact = combine([each.double() for each in logits], labels(False))
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)
    soft = combine(logits, labels(True).float())
    assert soft.dtype == torch.float32


def hostile(masked: Sequence[int]) -> list[Tensor]:
    """Large logits of teachers, of which some say that classes are impossible."""
    logits = said(3, scale=1e4, dtype=torch.float32)
    for teacher in masked:
        logits[teacher] = logits[teacher].masked_fill(torch.tensor([False, True, False, True]), -math.inf)
    return logits


@both
@pytest.mark.parametrize("soft", ["classes", "probabilities", "zeros"])
@pytest.mark.parametrize("masked", [(), (0,), (0, 2), (0, 1, 2)], ids=str)
@pytest.mark.parametrize("of_label", [False, True], ids=["others masked", "label masked"])
def test_large_logits_and_impossible_classes(
    combine: Callable[..., Tensor], soft: str, masked: Sequence[int], of_label: bool
) -> None:
    truth = torch.full((NUM,), 3 if of_label else 2)
    if soft != "classes":
        truth = F.one_hot(truth, CLASSES).float()
        if soft == "probabilities":
            truth = 0.9 * truth + 0.1 * F.one_hot(torch.full((NUM,), 1 if of_label else 0), CLASSES)
    logits = hostile(masked)
    found = combine(logits, truth)
    assert not found.isnan().any()
    torch.testing.assert_close(found.exp().sum(1), torch.ones(NUM))
    if len(masked) == 3:
        assert (found[:, [1, 3]] == -math.inf).all()
    # The student learns from it.
    student = torch.zeros(NUM, CLASSES, requires_grad=True)
    loss = lc.KD(temperature=1.0)(student, found, None)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_a_teacher_that_finds_the_label_impossible_has_no_weight() -> None:
    impossible = torch.tensor([[-math.inf, 0.0, 0.0]])
    knows = torch.tensor([[1.0, 0.0, 2.0]])
    for truth in (torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]])):
        found = average_by_confidence([impossible, knows], truth)
        torch.testing.assert_close(found, knows.log_softmax(1))
        both_err = average_by_confidence([impossible, knows, impossible], truth).exp()
        expected = 0.5 * knows.softmax(1) + 0.5 * impossible.softmax(1)
        torch.testing.assert_close(both_err, expected)


def test_gradients_are_numbers() -> None:
    logits = [each.requires_grad_() for each in hostile((0,))]
    average_uniformly(logits, None).exp().square().sum().backward()
    assert all(each.grad.isfinite().all() for each in logits)
