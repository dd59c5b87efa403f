"""Feature losses against plain formulas in float64: values, gradients, invariances and vanishing features."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional.feature_losses import (
    attention_transfer,
    contrastive,
    hint,
    normalize_rows,
    relational,
    similarity_preserving,
)

Loss = Callable[[Tensor, Tensor], Tensor]
LABELS = torch.tensor([0, 1, 0, 2])


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def naive_hint(student: Tensor, teacher: Tensor) -> Tensor:
    return ((student - teacher) ** 2).sum() / student.numel()


def naive_attention(student: Tensor, teacher: Tensor) -> Tensor:
    maps = []
    for feature in (student, teacher):
        energy = (feature**2).sum(dim=1).flatten(1)
        maps.append(energy / (energy**2).sum(dim=1, keepdim=True) ** 0.5)
    return ((maps[0] - maps[1]) ** 2).mean()


def naive_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    n, total = len(student), student.new_zeros(())
    for i in range(n):
        rows = [torch.stack([(x[i] * x[j]).sum() for j in range(n)]) for x in (student, teacher)]
        rows = [row / (row**2).sum() ** 0.5 for row in rows]
        total = total + ((rows[0] - rows[1]) ** 2).sum()
    return total / n**2


def huber(difference: Tensor) -> Tensor:
    size = difference.abs()
    return torch.where(size < 1, size**2 / 2, size - 0.5)


def naive_distances(student: Tensor, teacher: Tensor) -> Tensor:
    n = len(student)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    distances = [torch.stack([((x[i] - x[j]) ** 2).sum() ** 0.5 for i, j in pairs]) for x in (student, teacher)]
    return huber(distances[0] / distances[0].mean() - distances[1] / distances[1].mean()).sum() / n**2


def naive_angles(student: Tensor, teacher: Tensor) -> Tensor:
    n, total = len(student), student.new_zeros(())
    for j, i, k in itertools.product(range(n), repeat=3):
        if len({i, j, k}) == 3:
            cosines = [
                torch.cosine_similarity((x[i] - x[j]).flatten(), (x[k] - x[j]).flatten(), dim=0)
                for x in (student, teacher)
            ]
            total = total + huber(cosines[0] - cosines[1])
    return total / n**3


def naive_relational(student: Tensor, teacher: Tensor) -> Tensor:
    return 25 * naive_distances(student, teacher) + 50 * naive_angles(student, teacher)


def naive_contrastive(student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
    n, total = len(student), student.new_zeros(())
    for one, other in ((student, teacher), (teacher, student)):
        for i in range(n):
            scores = [torch.cosine_similarity(one[i], other[j], dim=0) / 0.07 for j in range(n)]
            against = [s for j, s in enumerate(scores) if j == i or labels is None or labels[i] != labels[j]]
            total = total - (scores[i].exp() / torch.stack(against).exp().sum()).log()
    return total / (2 * n)


def labeled(student: Tensor, teacher: Tensor) -> Tensor:
    return contrastive(student, teacher, LABELS.repeat(2)[: len(student)])


def naive_labeled(student: Tensor, teacher: Tensor) -> Tensor:
    return naive_contrastive(student, teacher, LABELS)


LOSSES: dict[str, tuple[Loss, Loss, tuple[int, ...], tuple[int, ...]]] = {
    "hint": (hint, naive_hint, (4, 3, 2), (4, 3, 2)),
    "attention": (attention_transfer, naive_attention, (4, 3, 5, 4), (4, 2, 5, 4)),
    "similarity": (similarity_preserving, naive_similarity, (4, 3, 2), (4, 5)),
    "relational": (relational, naive_relational, (4, 3, 2), (4, 5)),
    "contrastive": (contrastive, naive_contrastive, (4, 6), (4, 6)),
    "labeled": (labeled, naive_labeled, (4, 6), (4, 6)),
}
INTO_BOTH = ("contrastive", "labeled")


def case(name: str, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> tuple[Loss, Loss, Tensor, Tensor]:
    loss, reference, student, teacher = LOSSES[name]
    return (
        loss,
        reference,
        (scale * normal(*student)).clamp(-6e4, 6e4).to(dtype).requires_grad_(),
        (scale * normal(*teacher, seed=1)).to(dtype),
    )


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
@pytest.mark.parametrize("name", LOSSES)
def test_value_and_gradient(name: str, scale: float) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        loss, reference, student, teacher = case(name, dtype, scale)
        exact = student.detach().double().requires_grad_()
        expected = reference(exact, teacher.double())
        expected.backward()
        value = loss(student, teacher)
        value.backward()
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        rtol = 1e-9 if dtype == torch.float64 else 1e-5
        torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
        rtol = {torch.float64: 1e-9, torch.float32: 2e-5}.get(dtype, torch.finfo(dtype).eps)
        largest = float(exact.grad.abs().max())
        torch.testing.assert_close(student.grad.double(), exact.grad, rtol=rtol, atol=1e-7 + rtol * largest)


@pytest.mark.parametrize("name", LOSSES)
def test_finite_differences(name: str) -> None:
    loss, _, student, teacher = case(name)
    assert torch.autograd.gradcheck(lambda s: loss(s, teacher), student)


@pytest.mark.parametrize("name", LOSSES)
def test_all_is_finite(name: str) -> None:
    dtypes, scales = (torch.float16, torch.bfloat16, torch.float32), (0.0, 6e-8, 1e-3, 1.0, 2e4)
    for dtype, scale, other, batch in itertools.product(dtypes, scales, (0.0, 1.0), (4, 2, 1)):
        loss, _, student, _ = case(name, dtype, scale)
        teacher = case(name, dtype, other)[3]
        for change in ("none", "zero", "twins"):
            student = student.detach().clone()[:batch]
            if change != "none":
                student[-1] = 0 if change == "zero" else student[0]
            value = loss(student.requires_grad_(), teacher[:batch])
            value.backward()
            assert value.isfinite(), (dtype, scale, other, batch, change)
            assert value >= 0
            if name != "hint" or scale < 1e4:  # its own gradient may leave fp16
                assert student.grad.isfinite().all(), (dtype, scale, other, batch, change)


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_flows_into_the_student(name: str) -> None:
    loss, _, student, teacher = case(name)
    loss(student, teacher.requires_grad_()).backward()
    assert student.grad.abs().sum() > 0
    assert (teacher.grad is not None) == (name in INTO_BOTH)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    results = []
    for enabled in (False, True):
        loss, _, student, teacher = case(name, torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = loss(student, teacher)
        value.backward()
        results.append((value.detach(), student.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in INTO_BOTH])
def test_equal_features_have_no_loss(name: str) -> None:
    loss, _, student, _ = case(name)
    value = loss(student, student.detach())
    value.backward()
    assert value == 0
    assert (student.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_samples_does_not_matter(name: str) -> None:
    loss, _, student, teacher = case(name)
    order = torch.tensor([2, 0, 3, 1])
    if name == "labeled":
        moved = contrastive(student[order], teacher[order], LABELS[order])
    else:
        moved = loss(student[order], teacher[order])
    torch.testing.assert_close(moved, loss(student, teacher))


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "hint"])
@pytest.mark.parametrize("factor", [0.05, 30.0])
def test_the_scale_of_features_does_not_matter(name: str, factor: float) -> None:
    loss, _, student, teacher = case(name)
    torch.testing.assert_close(loss(factor * student, teacher / factor), loss(student, teacher))


@given(seed=st.integers(0, 999), samples=st.integers(1, 6), offset=st.floats(-5, 5))
@settings(max_examples=30, deadline=None)
def test_relations_do_not_see_rotations_and_translations(seed: int, samples: int, offset: float) -> None:
    student, teacher = normal(samples, 4, seed=seed), normal(samples, 3, seed=seed + 1000)
    rotation, _ = torch.linalg.qr(normal(4, 4, seed=seed + 2000))
    torch.testing.assert_close(relational(student @ rotation + offset, teacher), relational(student, teacher))
    if samples < 3:
        assert relational(student, teacher) < 1e-12


def test_relations_of_two_kinds() -> None:
    student, teacher = normal(5, 3), normal(5, 2, seed=1)
    torch.testing.assert_close(relational(student, teacher, 2.0, 0.0), 2 * naive_distances(student, teacher))
    torch.testing.assert_close(relational(student, teacher, 0.0, 3.0), 3 * naive_angles(student, teacher))


def test_relations_of_twins() -> None:
    """Pairs at no distance count neither in the mean nor in angles."""
    twins = torch.tensor([[0.0, 0.0], [0.0, 0.0], [3.0, 4.0]], requires_grad=True)
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    side = 3 / (2 + 2**0.5)
    apart = [0.0 - side, 1 - side, 1 - 2**0.5 * side]
    cosines = [0.0 - 0.0, 0.5**0.5, 1 - 0.5**0.5]
    expected = 25 * 2 * sum(a * a / 2 for a in apart) / 9 + 50 * 2 * sum(c * c / 2 for c in cosines) / 27
    # Angles of a side with itself are 1 where it has a length, also for the teacher: twice nothing against one.
    expected += 50 * 2 * 0.5 / 27
    value = relational(twins, teacher)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    value.backward()
    assert twins.grad.isfinite().all()


def test_far_from_zero_distances_keep_their_digits() -> None:
    student, teacher = normal(30, 40).float(), normal(30, 40, seed=1).float()  # more than 25: cdist would multiply
    student = (student * 2**12).round() / 2**12  # exact beside the offset
    torch.testing.assert_close(relational(student + 256, teacher), relational(student, teacher), rtol=1e-6, atol=0)


def test_attention_sums_squares_over_channels_and_pools_maps() -> None:
    student = torch.zeros(1, 2, 2, 2)
    student[0, 0, 0, 0], student[0, 1, 1, 1] = 2.0, -2.0
    teacher = torch.zeros(1, 1, 4, 2)
    teacher[0, 0, 0, 0], teacher[0, 0, 1, 0] = 1.0, -1.0
    # (4, 0, 0, 4) and (1, 0, 0, 0), both over their norm.
    expected = ((1 - 0.5**0.5) ** 2 + 0.5) / 4
    for a, b in ((student, teacher), (teacher, student)):
        assert attention_transfer(a, b).item() == pytest.approx(expected)


def test_attention_of_tokens() -> None:
    student, teacher = normal(3, 4, 5), normal(3, 8, 2, seed=1)
    pooled = (teacher**2).sum(dim=2).view(3, 4, 2).mean(dim=2).sqrt()
    expected = naive_attention(student.transpose(1, 2), pooled.unsqueeze(1))
    torch.testing.assert_close(attention_transfer(student, teacher), expected)
    torch.testing.assert_close(attention_transfer(teacher, student), expected)


def test_samples_of_one_class_are_no_negatives() -> None:
    student, teacher = normal(3, 4), normal(3, 4, seed=1)
    assert contrastive(student, teacher, torch.tensor([7, 7, 7])).abs() < 1e-12
    torch.testing.assert_close(
        contrastive(student, teacher, torch.tensor([0, 1, 2])), contrastive(student, teacher, None)
    )
    soft = torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    torch.testing.assert_close(
        contrastive(student, teacher, soft), contrastive(student, teacher, torch.tensor([0, 1, 0]))
    )


def test_the_temperature_divides_cosines() -> None:
    student = teacher = torch.eye(2, dtype=torch.float64)
    expected = torch.tensor(-2.0, dtype=torch.float64).exp().log1p()
    torch.testing.assert_close(contrastive(student, teacher, temperature=0.5), expected)


def test_normalize_rows() -> None:
    vectors = torch.tensor([[3.0, 4.0], [0.0, 0.0], [3e-4, 4e-4]])
    torch.testing.assert_close(normalize_rows(vectors), torch.tensor([[0.6, 0.8], [0.0, 0.0], [0.3, 0.4]]))


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="must have the same shape"):
        hint(torch.zeros(2, 3), torch.zeros(2, 4))
    for student, teacher in (((2, 3), (2, 3)), ((2, 3, 4), (2, 3, 4, 4)), ((2, 3, 4, 4, 4), (2, 3, 4, 4, 4))):
        with pytest.raises(ValueError, match="tokens"):
            attention_transfer(torch.zeros(student), torch.zeros(teacher))
