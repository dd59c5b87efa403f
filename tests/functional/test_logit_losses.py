"""Logit losses against plain formulas in float64: values, gradients, and extreme logits."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_compress.functional.logit_losses import dist, dkd, exclude_jointly, kd, standardize

Loss = Callable[[Tensor, Tensor, float], Tensor]
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
TEMPERATURES = (0.05, 1.0, 20.0)
MAGNITUDES = (1.0, 30.0, 1e4)
LABELS = torch.tensor([0, 3, 1, 5, 2])
INF = math.inf


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def masked(logits: Tensor, mask: str, student: bool) -> Tensor:
    """Some classes at -inf; label 3 of the second sample and all but one or none of the third among them."""
    logits = logits.clone()
    if mask == "same":
        logits[:, 4] = -INF
    elif mask == "mixed":
        logits[:, 4] = -INF
        logits[1, 3 if student else 0] = -INF
        logits[2, [0, 2, 3, 5] if student else [0, 2, 3]] = -INF
        logits[4, : 5 if student else 6] = -INF
    elif mask == "one left":
        logits[2, 1:] = -INF
        logits[3, :5] = -INF
        logits[4, : 3 if student else 6] = -INF
    return logits


MASKS = ("none", "same", "mixed", "one left")


def pair(dtype: torch.dtype, magnitude: float, mask: str) -> tuple[Tensor, Tensor]:
    student, teacher = (
        masked((magnitude * normal(5, 6, seed=s)).clamp(-1e4, 1e4).to(dtype), mask, s == 0) for s in (0, 1)
    )
    return student.requires_grad_(), teacher


def log_probabilities(logits: Tensor, temperature: float) -> Tensor:
    """Of one sample."""
    scaled = (logits - logits.max().detach()) / temperature
    return scaled - scaled.exp().sum().log()


def log_sum(logs: Tensor) -> Tensor:
    highest = logs.max().detach()
    return highest + (logs - highest).exp().sum().log()


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    return (teacher.exp() * (teacher - student)).sum()


def naive_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    total = student.new_zeros(())
    for s, t in zip(student, teacher, strict=True):
        kept = s.isfinite() & t.isfinite()
        if kept.any():
            total = total + divergence(*(log_probabilities(x[kept], temperature) for x in (s, t)))
    return temperature**2 * total / len(student)


def naive_dkd(student: Tensor, teacher: Tensor, temperature: float, alpha: float = 1.0, beta: float = 8.0) -> Tensor:
    total = student.new_zeros(())
    for s, t, label in zip(student, teacher, LABELS, strict=True):
        kept = s.isfinite() & t.isfinite()
        rest = kept.clone()
        rest[label] = False
        if rest.any():
            others = [log_probabilities(x[rest], temperature) for x in (s, t)]
            total = total + beta * divergence(*others)
        if rest.any() and kept[label]:
            order = torch.cat([label.view(1), rest.nonzero().flatten()])
            logs = [log_probabilities(x[order], temperature) for x in (s, t)]
            total = total + alpha * divergence(*(torch.stack([x[0], log_sum(x[1:])]) for x in logs))
    return temperature**2 * total / len(student)


def pearson(x: Tensor, y: Tensor) -> Tensor:
    x, y = x - x.mean(), y - y.mean()
    return (x * y).sum() / (x.square().sum().sqrt() * y.square().sum().sqrt())


def naive_dist(student: Tensor, teacher: Tensor, temperature: float, beta: float = 1.0, gamma: float = 1.0) -> Tensor:
    """Where nothing is constant."""
    kept = student.isfinite() & teacher.isfinite()
    p, q = torch.zeros_like(student), torch.zeros_like(student)
    for i, row in enumerate(kept):
        if row.any():
            p[i, row] = log_probabilities(student[i, row], temperature).exp()
            q[i, row] = log_probabilities(teacher[i, row], temperature).exp()
    between = [1 - pearson(p[i, row], q[i, row]) for i, row in enumerate(kept) if row.sum() > 1]
    within = [1 - pearson(p[col, i], q[col, i]) for i, col in enumerate(kept.T) if col.sum() > 1]
    return temperature**2 * (beta * torch.stack(between).mean() + gamma * torch.stack(within).mean())


def naive_standardized(logits: Tensor) -> Tensor:
    result = logits.clone()
    for i, row in enumerate(logits):
        kept = row.isfinite()
        if kept.any():
            deviations = row[kept] - row[kept].mean()
            result[i, kept] = deviations / deviations.square().mean().sqrt()
    return result


def dkd_of_labels(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return dkd(student, teacher, LABELS, temperature=temperature)


def correlations(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return dist(student, teacher, temperature=temperature)


def standardized_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    return kd(*(standardize(x) for x in exclude_jointly(student, teacher)), temperature)


def naive_standardized_kd(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    out = student.isneginf() | teacher.isneginf()
    return naive_kd(*(naive_standardized(x.masked_fill(out, -INF)) for x in (student, teacher)), temperature)


LOSSES = {"kd": kd, "dkd": dkd_of_labels, "dist": correlations, "standardized kd": standardized_kd}


def assert_as_reference(loss: Loss, reference: Loss, temperature: float, student: Tensor, teacher: Tensor) -> None:
    exact = student.detach().double().requires_grad_()
    expected = reference(exact, teacher.double(), temperature)
    expected.backward()
    value = loss(student, teacher, temperature)
    student.grad = None
    value.backward()
    dtype = student.dtype
    precise = dtype == torch.float64
    assert value.dtype == (torch.float64 if precise else torch.float32)
    unit = 1e-13 if precise else 1e-6
    torch.testing.assert_close(value.double(), expected, rtol=20 * unit, atol=2 * unit * temperature**2)
    rtol = 100 * unit if dtype in (torch.float32, torch.float64) else torch.finfo(dtype).eps
    atol = 1e-7 + 8 * unit * temperature if not precise else 1e-11
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=rtol, atol=atol)
    assert (student.grad[student.isneginf() | teacher.isneginf()] == 0).all()


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize(("loss", "reference"), [(kd, naive_kd), (dkd_of_labels, naive_dkd)], ids=["kd", "dkd"])
def test_value_and_gradient(loss: Loss, reference: Loss, mask: str) -> None:
    for dtype, temperature, magnitude in itertools.product(DTYPES, TEMPERATURES, MAGNITUDES):
        assert_as_reference(loss, reference, temperature, *pair(dtype, magnitude, mask))


@pytest.mark.parametrize("mask", ["none", "same"])
@pytest.mark.parametrize(("temperature", "magnitude"), [(0.05, 0.2), (1.0, 0.3), (1.0, 5.0), (20.0, 30.0)])
def test_correlations(temperature: float, magnitude: float, mask: str) -> None:
    for dtype in DTYPES:
        student, teacher = pair(dtype, magnitude, mask)
        assert_as_reference(correlations, naive_dist, temperature, student, teacher)


def test_correlations_over_what_is_left_of_each_class() -> None:
    student, teacher = (normal(5, 6, seed=s) for s in (0, 1))
    student[0, 1] = teacher[1, 2] = teacher[0, 5] = -INF
    assert_as_reference(correlations, naive_dist, 2.0, student.requires_grad_(), teacher)


@pytest.mark.parametrize("mask", MASKS)
def test_standardized(mask: str) -> None:
    for dtype, magnitude in itertools.product(DTYPES, (1.0, 30.0, 1e4)):
        if mask in ("none", "same"):
            assert_as_reference(standardized_kd, naive_standardized_kd, 2.0, *pair(dtype, magnitude, mask))
        logits, _ = pair(dtype, magnitude, mask)
        result = standardize(logits)
        kept = logits.isfinite()
        assert (result.isneginf() == ~kept).all()
        several = kept.sum(dim=1) > 1
        expected = naive_standardized(logits.detach().double())[several]
        torch.testing.assert_close(result.detach().double()[several], expected, rtol=2e-5, atol=2e-6)
        assert (result[~several & kept.any(dim=1)].masked_fill(~kept[~several & kept.any(dim=1)], 0) == 0).all()


CONSTANTS = ("neither", "student", "teacher", "both", "equal")


def with_constant(student: Tensor, teacher: Tensor, constant: str, value: float) -> tuple[Tensor, Tensor]:
    student, teacher = student.detach().clone(), teacher.clone()
    if constant in ("student", "both"):
        student[student.isfinite()] = value
    if constant in ("teacher", "both"):
        teacher[teacher.isfinite()] = -value
    return student.requires_grad_(), student.detach().clone() if constant == "equal" else teacher


def assert_finite(loss: Loss, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    student.grad = None
    value = loss(student, teacher, temperature)
    value.backward()
    assert value.isfinite(), (student, teacher, temperature)
    assert value >= -2e-6 * temperature**2
    assert student.grad.isfinite().all(), (student, teacher, temperature)
    assert (student.grad[student.isneginf() | teacher.isneginf()] == 0).all()
    return value


@pytest.mark.parametrize("temperature", TEMPERATURES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_all_is_finite_in_each_sample(dtype: torch.dtype, temperature: float) -> None:
    students, teachers = [], []
    for magnitude, mask, constant in itertools.product((6e-8, 1.0, 1e4), MASKS, CONSTANTS):
        student, teacher = with_constant(*pair(dtype, magnitude, mask), constant, magnitude)
        students.append(student.detach())
        teachers.append(teacher)
    student, teacher = torch.cat(students).requires_grad_(), torch.cat(teachers)
    labels = LABELS.repeat(len(students))
    for loss in (kd, lambda s, t, x: dkd(s, t, labels, temperature=x), correlations, standardized_kd):
        assert_finite(loss, student, teacher, temperature)


@pytest.mark.parametrize("constant", CONSTANTS)
def test_correlations_are_finite(constant: str) -> None:
    dtypes, magnitudes = (torch.float16, torch.float32), (6e-8, 1.0, 1e4)
    for dtype, temperature, magnitude in itertools.product(dtypes, TEMPERATURES, magnitudes):
        for mask in ("none", "mixed"):
            student, teacher = with_constant(*pair(dtype, magnitude, mask), constant, magnitude)
            value = assert_finite(correlations, student, teacher, temperature)
            if constant == "equal":
                assert value <= 1e-4 * temperature**2
                assert student.grad.abs().max() <= 1e-3 * max(1.0, temperature)
        student, teacher = (x.detach()[:1] for x in (student, teacher))
        assert_finite(correlations, student.requires_grad_(), teacher, temperature)


@pytest.mark.parametrize("name", LOSSES)
def test_equal_networks_have_no_loss(name: str) -> None:
    student, _ = pair(torch.float32, 3.0, "mixed")
    value = LOSSES[name](student, student.detach(), 2.0)
    value.backward()
    assert value.abs() < 2e-6
    assert student.grad.abs().max() < 2e-6


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_becomes_nan_on_the_way(name: str) -> None:
    """Not even a NaN that a mask takes away later: anomaly detection stops at those."""
    student, teacher = pair(torch.float32, 1e4, "mixed")
    with torch.autograd.detect_anomaly(check_nan=True):
        LOSSES[name](student, teacher, 0.05).backward()


def test_halves_come_to_the_same_as_wide_numbers() -> None:
    student, teacher = pair(torch.bfloat16, 3.0, "none")
    for loss in LOSSES.values():
        torch.testing.assert_close(loss(student, teacher, 2.0), loss(student.float(), teacher.float(), 2.0))
        assert loss(student, teacher.double(), 2.0).dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    results = []
    for enabled in (False, True):
        student, teacher = pair(torch.float32, 3.0, "same")
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            value = LOSSES[name](student, teacher, 2.0)
            value.backward()
        results.append((value.detach(), student.grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class OutsideOfAutocast(TorchFunctionMode):
    """Count reductions, and fail for those under autocast, as its policies differ between devices."""

    sums = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.__name__ in ("kl_div", "expm1", "square", "logsigmoid", "log_softmax", "logsumexp"):
            self.sums += 1
            assert not torch.is_autocast_enabled("cpu"), func
        return func(*args, **kwargs or {})


@pytest.mark.parametrize("name", LOSSES)
def test_sums_are_outside_of_autocast(name: str) -> None:
    student, teacher = pair(torch.float32, 3.0, "same")
    with torch.autocast("cpu", torch.bfloat16), OutsideOfAutocast() as mode:
        LOSSES[name](student, teacher, 2.0)
    assert mode.sums > 1


@pytest.mark.parametrize("name", LOSSES)
def test_the_gradient_flows_into_the_student_alone(name: str) -> None:
    student, teacher = pair(torch.float32, 3.0, "none")
    teacher.requires_grad_()
    LOSSES[name](student, teacher, 2.0).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("name", LOSSES)
def test_finite_differences(name: str) -> None:
    student, teacher = pair(torch.float64, 1.0, "none")
    assert torch.autograd.gradcheck(lambda s: LOSSES[name](s, teacher, 2.0), student)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_is_that_of_torch(temperature: float) -> None:
    student, teacher = (normal(7, 10, seed=s) for s in (0, 1))
    probabilities = [(x / temperature).log_softmax(1) for x in (student, teacher)]
    expected = torch.nn.functional.kl_div(*probabilities, reduction="batchmean", log_target=True) * temperature**2
    torch.testing.assert_close(kd(student, teacher, temperature), expected)


def test_large_logits_lose_no_digits() -> None:
    """A float32 near 2e5 has steps of 0.016."""
    student, teacher = torch.tensor([[1e4, 1e4 - 0.05]]), torch.tensor([[1e4 - 0.05, 1e4]])
    torch.testing.assert_close(
        kd(student, teacher, 0.05).double(), naive_kd(student.double(), teacher.double(), 0.05), rtol=1e-6, atol=0
    )


@given(
    logits=st.lists(st.tuples(st.floats(-8, 8), st.floats(-8, 8)), min_size=2, max_size=6),
    temperature=st.floats(0.2, 10),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_what_is_decoupled_adds_up(logits: list[tuple[float, float]], temperature: float, data: st.DataObject) -> None:
    student, teacher = torch.tensor(logits, dtype=torch.float64).T.unsqueeze(1)
    label = data.draw(st.integers(0, len(logits) - 1))
    labels = torch.tensor([label])
    of_target = dkd(student, teacher, labels, 1.0, 0.0, temperature)
    of_rest = dkd(student, teacher, labels, 0.0, 1.0, temperature)
    rest = 1 - (teacher / temperature).softmax(dim=1)[0, label]
    torch.testing.assert_close(of_target + rest * of_rest, kd(student, teacher, temperature), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_classes_and_samples_does_not_matter(name: str) -> None:
    student, teacher = pair(torch.float64, 2.0, "none")
    classes, samples = torch.tensor([3, 0, 5, 1, 4, 2]), torch.tensor([2, 4, 0, 1, 3])
    value = LOSSES[name](student, teacher, 2.0)
    moved = [x[samples][:, classes] for x in (student, teacher)]
    if name == "dkd":
        result = dkd(*moved, classes.argsort()[LABELS[samples]], temperature=2.0)
    else:
        result = LOSSES[name](*moved, 2.0)
    torch.testing.assert_close(result, value)


@pytest.mark.parametrize("name", LOSSES)
def test_a_constant_added_to_a_sample_does_not_matter(name: str) -> None:
    student, teacher = pair(torch.float64, 2.0, "none")
    value = LOSSES[name](student + normal(5, 1, seed=3), teacher + normal(5, 1, seed=4), 2.0)
    torch.testing.assert_close(value, LOSSES[name](student, teacher, 2.0))


@pytest.mark.parametrize("name", LOSSES)
def test_left_out_is_as_if_it_were_not_there(name: str) -> None:
    student, teacher = (normal(5, 8, seed=s) for s in (0, 1))
    student[:, 6] = teacher[:, 7] = -INF
    torch.testing.assert_close(LOSSES[name](student, teacher, 2.0), LOSSES[name](student[:, :6], teacher[:, :6], 2.0))


@given(scale=st.floats(0.2, 1.0), shape=st.tuples(st.integers(2, 5), st.integers(2, 5)), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_correlations_do_not_see_affine_changes(scale: float, shape: tuple[int, int], seed: int) -> None:
    student, teacher = normal(*shape, seed=seed), normal(*shape, seed=seed + 100)
    probabilities = teacher.softmax(dim=1)
    # Below a standard deviation of 0.001 correlations are damped on purpose.
    assume(all(float(scale * probabilities.std(dim=dim, correction=0).min()) > 2e-3 for dim in (0, 1)))
    changed = (scale * probabilities + (1 - scale) / shape[1]).log()
    torch.testing.assert_close(dist(student, changed), dist(student, teacher), rtol=1e-6, atol=1e-8)
    each = torch.linspace(scale, 1.0, shape[0], dtype=torch.float64).unsqueeze(1)
    by_sample = (each * probabilities + (1 - each) / shape[1]).log()
    torch.testing.assert_close(
        dist(student, by_sample, gamma=0.0), dist(student, teacher, gamma=0.0), rtol=1e-6, atol=1e-8
    )


def test_factors_of_the_parts() -> None:
    student, teacher = pair(torch.float64, 1.0, "none")
    for first, second in ((2.0, 0.0), (0.0, 3.0), (0.5, 0.25)):
        expected = naive_dkd(student, teacher, 3.0, first, second)
        torch.testing.assert_close(dkd(student, teacher, LABELS, first, second, 3.0), expected)
        torch.testing.assert_close(
            dist(student, teacher, first, second, 3.0), naive_dist(student, teacher, 3.0, first, second)
        )


def test_one_sample_has_no_relations_within_classes() -> None:
    student, teacher = (normal(1, 6, seed=s) for s in (0, 1))
    assert dist(student, teacher, beta=0.0) == 0
    torch.testing.assert_close(dist(student, teacher), naive_between(student, teacher))


def naive_between(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - pearson(student[0].softmax(0), teacher[0].softmax(0))


def test_a_teacher_that_does_not_vary_teaches_nothing() -> None:
    student, teacher = (normal(2, 6, seed=s) for s in (0, 1))
    alone = dist(student[:1], teacher[:1], gamma=0.0)
    teacher[1] = 7.0
    torch.testing.assert_close(dist(student, teacher, gamma=0.0), alone)  # the mean is over the others


def test_a_student_that_does_not_vary_is_not_related_and_learns() -> None:
    student, teacher = torch.zeros(3, 6, requires_grad=True), normal(3, 6).float()
    value = dist(student, teacher)
    assert value == 2
    value.backward()
    assert (torch.cosine_similarity(-student.grad, teacher) > 0.5).all()


def test_tiny_probabilities_correlate_as_well() -> None:
    """Probabilities of the last class are all zero in float32."""
    student, teacher = ([[0.0, 1.0, -200.0], [1.0, 0.0, -201.0], [0.5, 0.0, -204.0]] for _ in range(2))
    teacher[0][2], teacher[1][2] = -201.0, -200.0
    expected = naive_dist(*(torch.tensor(x, dtype=torch.float64) for x in (student, teacher)), 1.0)
    torch.testing.assert_close(dist(torch.tensor(student), torch.tensor(teacher)).double(), expected, rtol=1e-4, atol=0)


def test_probabilities_as_labels() -> None:
    student, teacher = pair(torch.float32, 1.0, "none")
    soft = torch.nn.functional.one_hot(LABELS, 6) * 0.6 + 0.05
    assert torch.equal(dkd(student, teacher, soft), dkd(student, teacher, LABELS))
    assert torch.equal(dkd(student, teacher, LABELS.int()), dkd(student, teacher, LABELS))


def test_constant_logits_become_zeros_and_learn() -> None:
    logits = torch.full((2, 4), 3.0, dtype=torch.float16, requires_grad=True)
    result = standardize(logits)
    assert result.dtype == torch.float32
    assert (result == 0).all()
    result[0, 1].backward()
    torch.testing.assert_close(logits.grad[0], torch.tensor([-250.0, 750.0, -250.0, -250.0]).half())


def test_no_samples() -> None:
    empty = torch.zeros(0, 4, requires_grad=True)
    assert kd(empty, empty.detach()) == 0
    assert dkd(empty, empty.detach(), torch.zeros(0, dtype=torch.long)) == 0


@pytest.mark.parametrize("shapes", [((2, 3), (2, 4)), ((2, 3), (1, 3)), ((3,), (3,)), ((2, 3, 4), (2, 3, 4))], ids=str)
def test_shapes_are_checked(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    student, teacher = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match="same classes"):
        kd(student, teacher)


def test_arguments_stay_as_they_are() -> None:
    student, teacher = pair(torch.float32, 3.0, "mixed")
    copies = student.detach().clone(), teacher.clone()
    for loss in LOSSES.values():
        loss(student, teacher, 2.0).backward()
    assert torch.equal(student, copies[0])
    assert torch.equal(teacher, copies[1])


def test_the_only_class_left_has_no_gradient() -> None:
    logits = torch.tensor([[2.0, -torch.inf]], requires_grad=True)
    found = standardize(logits)
    found[0, 0].backward()
    assert float(found.detach()[0, 0]) == 0.0
    assert logits.grad is not None
    assert float(logits.grad[0, 0]) == 0.0
