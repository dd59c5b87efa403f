"""What adapters learn, and what they do to sizes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Size, Tensor, nn

from lightning_compress.distillation.adapters import (
    ChannelLinear,
    IdentityAdapter,
    ProjectionAdapter,
    RegressionAdapter,
    global_average,
)


def feature(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def adapted(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor, nn.Module]:
    adapter = RegressionAdapter(student.shape, teacher.shape)
    return *adapter(student, teacher), adapter


@pytest.mark.parametrize(
    ("student", "teacher", "kind", "size"),
    [
        ((2, 3, 8, 8), (2, 5, 4, 4), ChannelLinear, 15),
        ((2, 3, 4, 4), (2, 3, 4, 4), nn.Identity, 0),
        ((2, 6, 3), (2, 4, 5), ChannelLinear, 15),
        ((2, 6, 3), (2, 4, 3), nn.Identity, 0),
        ((2, 3), (2, 5), ChannelLinear, 15),
        ((2, 3), (2, 3), nn.Identity, 0),
        ((2, 3, 4, 4), (2, 5), ChannelLinear, 15),
        ((2, 3, 4, 4), (2, 7, 5), ChannelLinear, 15),
        ((2, 7, 3), (2, 5, 4, 4), ChannelLinear, 15),
        ((2, 3), (2, 7, 3), nn.Identity, 0),
    ],
    ids=str,
)
def test_a_map_of_channels(
    student: tuple[int, ...], teacher: tuple[int, ...], kind: type[nn.Module], size: int
) -> None:
    a, b, adapter = adapted(feature(student), feature(teacher, 1))
    assert a.shape == b.shape
    assert type(adapter.map) is kind
    assert sum(p.numel() for p in adapter.parameters()) == size
    if len(student) == len(teacher):
        assert torch.equal(b, feature(teacher, 1))
    else:
        assert torch.equal(b, global_average(feature(teacher, 1)))


def test_the_map_begins_as_he_et_al() -> None:
    torch.manual_seed(0)
    for shapes in (((1, 64, 2, 2), (1, 400, 2, 2)), ((1, 64), (1, 400))):
        weight = RegressionAdapter(*map(Size, shapes)).map.weight
        assert weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)
        assert weight.abs().max() > 4 * weight.std() * 0.9  # normal, not uniform


def test_less_is_averaged_more_is_interpolated() -> None:
    student = feature((2, 3, 4, 6))
    blocks = student.view(2, 3, 1, 4, 3, 2).mean(dim=(3, 5))  # of two each, interpolation would be the same
    torch.testing.assert_close(adapted(student, torch.zeros(2, 3, 1, 3))[0], blocks)
    larger = nn.functional.interpolate(student, (8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(adapted(student, torch.zeros(2, 3, 8, 12))[0], larger)
    mixed = nn.functional.interpolate(student.view(2, 3, 2, 2, 6).mean(dim=3), (2, 12), mode="bilinear")
    torch.testing.assert_close(adapted(student, torch.zeros(2, 3, 2, 12))[0], mixed)


def test_tokens_are_averaged() -> None:
    student = feature((2, 6, 3))
    torch.testing.assert_close(adapted(student, torch.zeros(2, 2, 3))[0], student.view(2, 2, 3, 3).mean(dim=2))


def test_sizes_may_change_later() -> None:
    adapter = RegressionAdapter(Size((2, 3, 4, 4)), Size((2, 5, 4, 4)))
    assert adapter(feature((7, 3, 6, 6)), feature((7, 5, 3, 3)))[0].shape == (7, 5, 3, 3)


def test_the_map_is_linear_in_channels() -> None:
    student = feature((2, 3, 4, 4))
    a, _, adapter = adapted(student, feature((2, 5, 4, 4)))
    torch.testing.assert_close(a, torch.einsum("nchw,dc->ndhw", student, adapter.map.weight))


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 6, 3, 3)], ids=str)
def test_projections(shape: tuple[int, ...]) -> None:
    adapter = ProjectionAdapter(Size(shape), Size((4, 9)), 8)
    student, teacher = feature(shape), feature((4, 9), 1)
    a, b = adapter(student, teacher)
    for result, head, mean in ((a, adapter.student, global_average(student)), (b, adapter.teacher, teacher)):
        hidden = (mean @ head[0].weight.T + head[0].bias).relu() @ head[2].weight.T + head[2].bias
        torch.testing.assert_close(result, hidden / hidden.norm(dim=1, keepdim=True))
    assert sum(p.numel() for p in adapter.parameters()) == (6 + 9) * 8 + 2 * (8 * 8 + 2 * 8)


def test_embeddings_that_vanish_have_bounded_gradients() -> None:
    adapter = ProjectionAdapter(Size((2, 3)), Size((2, 3)), 4)
    for p in adapter.parameters():
        nn.init.zeros_(p)
    (adapter(feature((2, 3)), feature((2, 3)))[0]).sum().backward()
    assert adapter.student[2].bias.grad.abs().max() <= 2e3


def test_averages() -> None:
    torch.testing.assert_close(global_average(feature((2, 5, 3))), feature((2, 5, 3)).sum(dim=1) / 5)
    torch.testing.assert_close(global_average(feature((2, 5, 3, 4))), feature((2, 5, 3, 4)).flatten(2).sum(dim=2) / 12)


@pytest.mark.parametrize(
    "adapter",
    [
        IdentityAdapter(),
        RegressionAdapter(Size((2, 3, 8, 8)), Size((2, 5, 4, 4))),
        ProjectionAdapter(Size((2, 3, 8, 8)), Size((2, 5, 4, 4)), 4),
    ],
    ids=lambda a: type(a).__name__,
)
def test_copies(adapter: nn.Module) -> None:
    student, teacher = feature((2, 3, 8, 8)), feature((2, 5, 4, 4), 1).requires_grad_()
    expected = adapter(student, teacher)
    for other in (copy.deepcopy(adapter), pickle.loads(pickle.dumps(adapter))):
        assert all(torch.equal(a, b) for a, b in zip(other(student, teacher), expected, strict=True))
    if expected[1].requires_grad:
        expected[1].sum().backward()
    assert teacher.grad is None


@pytest.mark.parametrize("adapter", [RegressionAdapter, ProjectionAdapter])
def test_under_autocast(adapter: type[nn.Module]) -> None:
    shapes = Size((2, 3, 4, 4)), Size((2, 5, 8, 8))
    module = RegressionAdapter(*shapes) if adapter is RegressionAdapter else ProjectionAdapter(*shapes, 4)
    with torch.autocast("cpu", torch.bfloat16):
        a, b = module(*(feature(shape) for shape in shapes))
    assert a.shape == b.shape
    if adapter is ProjectionAdapter:
        torch.testing.assert_close(a.norm(dim=1), torch.ones(2))
