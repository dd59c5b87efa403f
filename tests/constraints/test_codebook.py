from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_compress.constraints.assignment import Assignment
from lightning_compress.constraints.codebook import CodebookConstraint
from lightning_compress.constraints.layer import Layer

INDEX = torch.tensor([2, 1, 1, 0, 2, 1], dtype=torch.int32)
FREE = torch.tensor([False, False, True, False, False, True])
VALUES = torch.tensor([5.0, 6.0, 7.0])


def make(weight: Tensor | None = None) -> tuple[nn.Linear, CodebookConstraint]:
    linear = nn.Linear(3, 2)
    linear.weight = nn.Parameter(torch.arange(6.0).view(2, 3) if weight is None else weight.clone())
    return linear, CodebookConstraint([Layer("weight", linear.weight)])


def bits(tensor: Tensor) -> list[int]:
    return tensor.flatten().view(torch.int32).tolist()


# Assignments.


def test_means_and_representatives() -> None:
    assignment = Assignment(INDEX, 4)
    tensor = torch.tensor([[2.0, 1.0, 3.0], [9.0, 7.0, 5.0]])
    assert assignment.means(tensor).tolist() == [9.0, 3.0, 4.5, 0.0]  # the last is empty
    assert assignment.means(tensor).dtype == torch.float64
    assert assignment.values(tensor).tolist()[:3] == [9.0, 1.0, 2.0]  # the first members
    assert assignment.counts.tolist() == [1, 3, 2, 0]


def test_the_last_weight_may_be_a_cluster_by_itself() -> None:
    assignment = Assignment(torch.tensor([0, 0, 1], dtype=torch.int32), 2)
    assert assignment.values(torch.tensor([1.0, 1.0, 2.0])).tolist() == [1.0, 2.0]


def test_free_weights_are_nowhere_counted() -> None:
    assignment = Assignment(INDEX, 3, free=FREE)
    tensor = torch.tensor([[2.0, 1.0, torch.nan], [9.0, 7.0, torch.inf]])
    assert assignment.counts.tolist() == [1, 1, 2]
    assert assignment.means(tensor).tolist() == [9.0, 1.0, 4.5]
    assert assignment.values(tensor).tolist() == [9.0, 1.0, 2.0]


def test_free_weights_are_not_written() -> None:
    tensor = torch.arange(6.0).view(2, 3)
    Assignment(INDEX, 3, free=FREE).write_(tensor, VALUES)
    assert tensor.tolist() == [[7.0, 6.0, 2.0], [5.0, 7.0, 5.0]]


def test_a_cluster_of_free_weights_only() -> None:
    assignment = Assignment(torch.tensor([0, 1, 1], dtype=torch.int32), 2, free=torch.tensor([False, True, True]))
    tensor = torch.tensor([4.0, 5.0, 6.0])
    assert assignment.means(tensor).tolist() == [4.0, 0.0]
    assignment.write_(tensor, assignment.values(tensor))
    assert tensor.tolist() == [4.0, 5.0, 6.0]


@pytest.mark.parametrize("free", [None, FREE])
def test_sums_along_the_sorted_row_are_the_same(free: Tensor | None) -> None:
    plain, ordered = (Assignment(INDEX, 5, pins_zero=True, free=free) for _ in range(2))
    assert plain._order is None
    ordered._order = ordered._member_of.argsort(stable=True)
    tensor = torch.randn(2, 3)
    torch.testing.assert_close(plain.means(tensor), ordered.means(tensor), rtol=1e-14, atol=1e-14)


@given(
    index=st.lists(st.integers(0, 4), min_size=1, max_size=20),
    pins_zero=st.booleans(),
    has_free=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    seed=st.integers(0, 1000),
)
@example(index=[0, 0, 1, 0, 0, 0, 0, 0], pins_zero=False, has_free=False, dtype=torch.float64, seed=4)
@settings(max_examples=100, deadline=None)
def test_projection_is_idempotent(
    index: list[int], pins_zero: bool, has_free: bool, dtype: torch.dtype, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    free = torch.rand(len(index), generator=generator) < 0.3 if has_free else None
    assignment = Assignment(torch.tensor(index, dtype=torch.int32), 5, pins_zero=pins_zero, free=free)
    for project in (assignment.means, assignment.values):
        tensor = torch.randn(len(index), generator=generator).to(dtype)
        before = tensor.clone()
        assignment.write_(tensor, project(tensor))
        once = tensor.clone()
        assignment.write_(tensor, project(tensor))
        # A mean of equal numbers, taken in double precision, is that number to the last bit of any other precision.
        bound = len(index) * 2.0**-53 if project == assignment.means and dtype == torch.float64 else 0.0
        torch.testing.assert_close(tensor, once, rtol=bound, atol=0)
        held = torch.ones(len(index), dtype=torch.bool) if free is None else ~free
        assert torch.equal(tensor[~held], before[~held])
        for k in range(5):
            members = tensor[held & (torch.tensor(index) == k)]
            assert len(members.unique()) <= 1
            assert not (pins_zero and k == 0) or bits(members.float()) == [0] * len(members)


# The constraint.


def test_at_first_everything_is_free() -> None:
    linear, constraint = make()
    before = linear.weight.clone()
    linear.weight.grad = torch.randn(2, 3)
    gradient = linear.weight.grad.clone()
    constraint.project_weights_()
    constraint.project_gradients_()
    constraint.sum_gradients_()
    assert torch.equal(linear.weight, before)
    assert torch.equal(linear.weight.grad, gradient)
    assert constraint.state_dict() == {}


def test_replace_writes_values_into_the_same_parameter() -> None:
    linear, constraint = make()
    parameter = linear.weight
    constraint.replace(0, Assignment(INDEX, 3), VALUES)
    assert linear.weight is parameter
    assert linear.weight.tolist() == [[7.0, 6.0, 6.0], [5.0, 7.0, 6.0]]
    assert linear.weight.requires_grad


def test_pinned_zeros_are_positive_also_in_place_of_what_is_not_finite() -> None:
    linear, constraint = make(torch.tensor([[1.0, -0.0, torch.nan], [-torch.inf, 2.0, -3.0]]))
    index = torch.tensor([1, 0, 0, 0, 1, 0], dtype=torch.int32)
    constraint.replace(0, Assignment(index, 2, pins_zero=True), torch.tensor([-0.0, 4.0]))
    linear.weight.data.copy_(torch.tensor([[4.0, -0.0, torch.nan], [-torch.inf, 4.0, -3.0]]))
    linear.weight.grad = torch.tensor([[1.0, torch.nan, -0.0], [torch.inf, 3.0, -3.0]])
    constraint.project_weights_()
    constraint.project_gradients_()
    assert linear.weight.tolist() == [[4.0, 0.0, 0.0], [0.0, 4.0, 0.0]]
    assert linear.weight.grad.tolist() == [[2.0, 0.0, 0.0], [0.0, 2.0, 0.0]]
    for tensor in (linear.weight.detach(), linear.weight.grad):
        assert bits(tensor.flatten()[index == 0]) == [0] * 4


def test_weights_that_rounding_moved_get_the_value_of_the_first_member() -> None:
    linear, constraint = make()
    constraint.replace(0, Assignment(INDEX, 3), VALUES)
    linear.weight.data += torch.tensor([[0.0, 1e-6, 0.0], [1.0, 1e-6, 0.0]])
    constraint.project_weights_()
    first = float(torch.tensor(6.0) + 1e-6)
    assert linear.weight.tolist() == [[7.0, first, first], [6.0, 7.0, first]]


def test_gradients_are_averaged_or_summed() -> None:
    linear, constraint = make()
    constraint.replace(0, Assignment(INDEX, 3, free=FREE), VALUES)
    linear.weight.grad = torch.tensor([[1.0, 2.0, 30.0], [4.0, 5.0, 60.0]])
    constraint.project_gradients_()
    assert linear.weight.grad.tolist() == [[3.0, 2.0, 30.0], [4.0, 3.0, 60.0]]
    constraint.sum_gradients_()
    assert linear.weight.grad.tolist() == [[6.0, 2.0, 30.0], [4.0, 6.0, 60.0]]


def test_gradients_of_some_layers_only() -> None:
    first, second = nn.Linear(3, 2), nn.Linear(3, 2)
    constraint = CodebookConstraint([Layer("0.weight", first.weight), Layer("1.weight", second.weight)])
    constraint.replace(1, Assignment(INDEX, 3), VALUES)
    second.weight.grad = torch.arange(6.0).view(2, 3)
    constraint.project_gradients_()
    constraint.sum_gradients_()
    assert first.weight.grad is None
    assert second.weight.grad.tolist() == [[4.0, 8.0, 8.0], [3.0, 4.0, 8.0]]
    assert len(first.weight.unique()) == 6


def make_two() -> tuple[list[nn.Parameter], CodebookConstraint]:
    parameters = [nn.Parameter(torch.arange(6.0).view(2, 3)) for _ in range(2)]
    constraint = CodebookConstraint([Layer(f"{i}.weight", parameter) for i, parameter in enumerate(parameters)])
    for i in range(2):
        constraint.replace(i, Assignment(INDEX, 3), VALUES)
    return parameters, constraint


def test_a_layer_without_a_gradient_leaves_those_of_its_batch_their_own_clusters() -> None:
    (first, second), constraint = make_two()
    for parameters in ([first, second], [first], [second]):
        first.grad = second.grad = None
        for parameter in parameters:
            parameter.grad = torch.arange(6.0).view(2, 3)
        constraint.project_gradients_()
        constraint.sum_gradients_()
        assert [p.grad.tolist() for p in parameters] == [[[4.0, 8.0, 8.0], [3.0, 4.0, 8.0]]] * len(parameters)


def test_layers_are_joined_once() -> None:
    _, constraint = make_two()
    assert constraint.joint([0, 1]) is constraint.joint([0, 1])


def test_frozen_layers_keep_weights_and_gradients_and_are_not_checked() -> None:
    (first, second), constraint = make_two()
    assert constraint.is_satisfied()
    moved = torch.arange(6.0).view(2, 3)
    for parameter in (first, second):
        parameter.data.copy_(moved)
        parameter.grad = moved.clone()
    assert not constraint.is_satisfied()
    constraint.frozen = frozenset([1])
    assert not constraint.is_satisfied()
    constraint.project_gradients_()
    constraint.sum_gradients_()
    constraint.project_weights_()
    assert first.grad.tolist() == [[4.0, 8.0, 8.0], [3.0, 4.0, 8.0]]
    assert first.tolist() == [[0.0, 1.0, 1.0], [3.0, 0.0, 1.0]]
    assert torch.equal(second.grad, moved)
    assert torch.equal(second, moved)
    assert constraint.is_satisfied()


def test_a_copy_of_the_model_is_projected_onto_means() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    constraint = CodebookConstraint([Layer("0.weight", net[0].weight)])
    constraint.replace(0, Assignment(INDEX, 3), VALUES)
    copy = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    copy[0].weight.data = torch.tensor([[2.0, 1.0, 3.0], [9.0, 7.0, 5.0]])
    other = copy[1].weight.clone()
    constraint.project_copy_(copy)
    assert copy[0].weight.tolist() == [[4.5, 3.0, 3.0], [9.0, 4.5, 3.0]]
    assert torch.equal(copy[1].weight, other)


# Training.

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
}


@pytest.mark.parametrize("gradient", ["mean", "sum"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_training_the_centroids(name: str, gradient: str) -> None:
    index = torch.randint(0, 4, (24,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    index[:4] = torch.arange(4)
    generator = torch.Generator().manual_seed(1)
    codebook = nn.Parameter(torch.randn(4, generator=generator, dtype=torch.float64))
    weight = nn.Parameter(torch.empty(6, 4, dtype=torch.float64))
    constraint = CodebookConstraint([Layer("weight", weight)])
    constraint.replace(0, Assignment(index, 4), codebook.detach())
    counts = torch.bincount(index).double()
    ours, theirs = OPTIMIZERS[name]([weight]), OPTIMIZERS[name]([codebook])
    for _ in range(30):
        inputs, target = (torch.randn(5, n, generator=generator, dtype=torch.float64) for n in (4, 6))
        (inputs @ weight.T - target).square().mean().backward()
        constraint.project_gradients_()
        if gradient == "sum":
            constraint.sum_gradients_()
        ours.step()
        constraint.project_weights_()
        (inputs @ codebook[index.long()].view(6, 4).T - target).square().mean().backward()
        if gradient == "mean":
            codebook.grad /= counts
        theirs.step()
        ours.zero_grad()
        theirs.zero_grad()
        torch.testing.assert_close(weight.detach().flatten(), codebook.detach()[index.long()], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_projected_gradient_and_state_keep_weights_equal(name: str) -> None:
    linear, constraint = make(torch.randn(2, 3))
    optimizer = OPTIMIZERS[name]([linear.weight])
    for step in range(5):
        optimizer.zero_grad()
        linear(torch.randn(4, 3)).square().sum().backward()
        constraint.project_gradients_()
        optimizer.step()
        if step == 1:
            assert len(linear.weight.unique()) == 6
            constraint.replace(0, Assignment(INDEX, 3), VALUES)
            constraint.project_state_(optimizer)
            shaped = [v for v in optimizer.state[linear.weight].values() if v.shape == (2, 3)]
            assert shaped
            assert all(len(value.unique()) == 3 for value in shaped)
        if step > 1:  # without a projection of the weights
            assert len(linear.weight.unique()) == 3


# State.


@pytest.mark.parametrize("free", [None, FREE])
@pytest.mark.parametrize("num_clusters", [3, 256, 257])
def test_state_dict_round_trip_through_a_safe_file(num_clusters: int, free: Tensor | None, tmp_path: Path) -> None:
    linear, constraint = make()
    index = INDEX + num_clusters - 3  # the highest that there are
    constraint.replace(0, Assignment(index, num_clusters, pins_zero=True, free=free), torch.randn(num_clusters))
    torch.save(constraint.state_dict(), tmp_path / "clusters")
    state = torch.load(tmp_path / "clusters", weights_only=True)
    assert state["weight"]["index"].dtype == (torch.uint8 if num_clusters <= 256 else torch.int32)
    _, other = make(linear.weight.detach())
    other.load_state_dict(state)
    (found,) = other.assignments
    assert found is not None
    assert torch.equal(found.index, index)
    assert found.index.dtype == torch.int32
    assert (found.num_clusters, found.pins_zero) == (num_clusters, True)
    assert found.free is None if free is None else torch.equal(found.free, free)
    assert other.digest() == constraint.digest()


def test_a_loaded_constraint_projects() -> None:
    _, constraint = make()
    constraint.replace(0, Assignment(INDEX, 3), VALUES)
    linear, other = make()
    other.load_state_dict(constraint.state_dict())
    assert linear.weight.tolist() == [[0.0, 1.0, 1.0], [3.0, 0.0, 1.0]]
    other.load_state_dict({})
    assert other.assignments == [None]


def test_clusters_of_other_weights_are_refused_in_one_sentence() -> None:
    _, constraint = make()
    constraint.replace(0, Assignment(INDEX, 3), VALUES)
    state = constraint.state_dict()["weight"]
    _, other = make()
    with pytest.raises(ValueError, match=r"^The checkpoint clusters 'head.weight': .*other targets\.$"):
        other.load_state_dict({"head.weight": state, "weight": state})
    short = {**state, "index": state["index"][:5]}
    message = (
        r"^The checkpoint assigns 5 weights of 'weight' to clusters, and it has 6: load a checkpoint of this model\.$"
    )
    with pytest.raises(ValueError, match=message):
        other.load_state_dict({"weight": short})
    assert other.assignments == [None]


def test_digests_tell_apart_clusters_values_and_what_is_free() -> None:
    digests = []
    for index, values, free in [
        (INDEX, VALUES, None),
        (INDEX, VALUES, None),
        (INDEX.flip(0), VALUES, None),
        (INDEX, VALUES + 1e-6, None),
        (INDEX, VALUES, FREE),
        (INDEX, VALUES, ~FREE),
    ]:
        _, constraint = make()
        constraint.replace(0, Assignment(index, 3, free=free), values)
        digests.append(constraint.digest())
    assert digests[0] == digests[1]
    assert len(set(digests)) == 5
    assert len(digests[0]) == 8


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    linear, constraint = make(torch.randn(2, 3).to(dtype))
    constraint.replace(0, Assignment(INDEX, 3), VALUES)
    assert linear.weight.dtype == dtype
    assert linear.weight.tolist() == [[7.0, 6.0, 6.0], [5.0, 7.0, 6.0]]
    linear.weight.grad = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 7.0]], dtype=dtype)
    constraint.project_gradients_()
    assert linear.weight.grad.tolist() == [[3.0, 4.0, 4.0], [4.0, 3.0, 4.0]]


class Device(Tensor):
    """Looks like a tensor of a GPU, where a sort that need not be stable reverses the order of equal values."""

    @property
    def is_cuda(self) -> bool:
        return True

    def argsort(self, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
        plain = self.as_subclass(Tensor)
        return plain.argsort(stable=True) if stable else len(plain) - 1 - plain.flip(0).argsort(stable=True)


def test_sums_of_a_gpu_are_taken_in_the_order_of_the_weights() -> None:
    assignment = Assignment(INDEX.as_subclass(Device), 3)
    assert torch.equal(torch.as_tensor(assignment._order), torch.tensor([3, 1, 2, 5, 0, 4]))
