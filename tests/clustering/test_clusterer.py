from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_compress.clustering.clusterer import Clusterer
from lightning_compress.clustering.codebook_spec import CodebookSpec
from lightning_compress.constraints.codebook import CodebookConstraint
from lightning_compress.constraints.layer import Layer


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make(*weights: Tensor, spec: CodebookSpec = CodebookSpec(4), weighted: bool = False) -> Clusterer:
    layers = [Layer(f"{i}.weight", nn.Parameter(weight.clone())) for i, weight in enumerate(weights)]
    return Clusterer(CodebookConstraint(layers), [spec] * len(layers), weighted=weighted)


def weights_of(clusterer: Clusterer) -> list[Tensor]:
    return [layer.weight for layer in clusterer.constraint.layers]


def fixed_of(clusterer: Clusterer, i: int = 0) -> Tensor:
    assignment = clusterer.constraint.assignments[i]
    assert assignment is not None
    return torch.ones_like(assignment.index, dtype=torch.bool) if assignment.free is None else ~assignment.free


def test_weights_of_all_layers_are_clustered() -> None:
    clusterer = make(torch.tensor([[1.0, 2.0, 9.0, 8.0]]), torch.tensor([[-4.0, -6.0, 3.0]]), spec=CodebookSpec(2))
    parameters = [layer.parameter for layer in clusterer.constraint.layers]
    clusterer.update([None, None])
    first, second = weights_of(clusterer)
    assert first.tolist() == [[1.5, 1.5, 8.5, 8.5]]
    assert second.tolist() == [[-5.0, -5.0, 3.0]]
    assert all(layer.parameter is p for layer, p in zip(clusterer.constraint.layers, parameters, strict=True))


def test_present_zeros_stay() -> None:
    clusterer = make(torch.tensor([[0.0, 2.0, -0.0, 3.0, 9.0]]), spec=CodebookSpec(3))
    clusterer.update([None])
    (weight,) = weights_of(clusterer)
    assert weight.tolist() == [[0.0, 2.5, 0.0, 2.5, 9.0]]
    assert not weight.signbit().any()
    assert clusterer.constraint.assignments[0].pins_zero


def test_zeros_that_are_given_count_instead() -> None:
    clusterer = make(torch.tensor([[0.0, 2.0, 1.0, 3.0]]), spec=CodebookSpec(3))
    clusterer.update([torch.tensor([[False, True, False, False]])])
    assert weights_of(clusterer)[0].tolist() == [[0.5, 0.0, 0.5, 3.0]]
    clusterer = make(torch.tensor([[0.0, 2.0, 1.0, 3.0]]), spec=CodebookSpec(2))
    clusterer.update([torch.zeros(1, 4, dtype=torch.bool)])
    assert weights_of(clusterer)[0].tolist() == [[0.5, 2.5, 0.5, 2.5]]
    assert not clusterer.constraint.assignments[0].pins_zero


def test_the_largest_weights_are_fixed_first() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.9, -1.0, 0.3, 0.8]])
    clusterer = make(weight, spec=CodebookSpec(2))
    clusterer.update([None], fraction=0.5)
    assert fixed_of(clusterer).tolist() == [False, False, True, True, False, True]
    found = weights_of(clusterer)[0]
    assert torch.equal(found[0, ~fixed_of(clusterer)], weight[0, ~fixed_of(clusterer)])
    assert len(found[0, fixed_of(clusterer)].unique()) == 2


def test_no_weight_and_all_weights_fixed() -> None:
    weight = normal(4, 5)
    clusterer = make(weight)
    clusterer.update([None], fraction=0.0)
    assert not fixed_of(clusterer).any()
    assert torch.equal(weights_of(clusterer)[0], weight)
    clusterer.update([None])
    assert clusterer.constraint.assignments[0].free is None


@given(
    fractions=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    num_zeros=st.integers(0, 15),
    seed=st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_fixed_weights_stay_fixed(fractions: list[float], num_zeros: int, seed: int) -> None:
    weight = normal(5, 6, seed=seed)
    weight.view(-1)[:num_zeros] = 0.0
    clusterer = make(weight)
    before, most = torch.zeros(30, dtype=torch.bool), 0.0
    for step, fraction in enumerate(fractions):  # they may also become smaller
        clusterer.update([None], fraction=fraction)
        fixed, nonzero = fixed_of(clusterer), weights_of(clusterer)[0].flatten() != 0
        assert not (before & ~fixed).any()
        most = max(most, fraction)
        num_nonzero = 30 - num_zeros
        assert int((fixed & nonzero).sum()) == round(most * num_nonzero)
        assert fixed[~nonzero].all(), "zeros are free"
        before = fixed
        weights_of(clusterer)[0].add_(0.1 * normal(5, 6, seed=seed + step) * nonzero.view(5, 6))
        clusterer.constraint.project_weights_()


def test_weights_of_equal_magnitude_are_fixed_in_the_exact_number() -> None:
    clusterer = make(torch.tensor([[0.5, -0.5, 0.5, -0.5, 0.5, 0.5, -0.5, 0.5]]), spec=CodebookSpec(2))
    clusterer.update([None], fraction=0.25)
    assert int(fixed_of(clusterer).sum()) == 2


def test_zeros_that_came_later_free_nothing() -> None:
    weight = torch.tensor([[0.1, 0.2, 0.3, 0.4, 5.0, 6.0, 7.0, 8.0]])
    clusterer = make(weight, spec=CodebookSpec(3))
    clusterer.update([None], fraction=0.5)
    zeros = weight < 0.35
    weights_of(clusterer)[0].masked_fill_(zeros, 0.0)
    clusterer.update([zeros], fraction=0.5)
    assert fixed_of(clusterer).tolist() == [True, True, True, False, True, True, True, True]
    assert torch.equal(weights_of(clusterer)[0] == 0, zeros)


def test_present_centers_are_the_start() -> None:
    weight = torch.tensor([[0.0, 1.0, 10.0, 11.0, 20.0, 21.0]]) + 1
    stuck = torch.tensor([1.0, 2.0, 16.5])
    clusterer = make(weight, spec=CodebookSpec(3))
    clusterer.update([None], fraction=0.0, initial_centers={"0.weight": stuck})
    assert clusterer.constraint.assignments[0].index.tolist() == [0, 1, 2, 2, 2, 2]
    weights_of(clusterer)[0].copy_(torch.tensor([[1.0, 2.0, 16.0, 16.0, 17.0, 17.0]]))
    clusterer.update([None])
    weights_of(clusterer)[0].add_(torch.tensor([[0.5, 0.0, 0.0, 1.0, 0.0, 0.0]]))
    clusterer.constraint.project_weights_()
    clusterer.update([None])
    assert clusterer.constraint.assignments[0].index.tolist() == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("spec", [CodebookSpec(8), CodebookSpec(8, "channel"), CodebookSpec(8, vector_size=2)])
@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5])
def test_no_cluster_is_lost_as_its_members_are_free(spec: CodebookSpec, fraction: float) -> None:
    clusterer, fresh = make(normal(4, 200), spec=spec), make(normal(4, 200), spec=spec)
    clusterer.update([None], fraction=fraction)
    clusterer.update([None], fraction=fraction)
    clusterer.update([None])
    fresh.update([None])
    errors = [float((weights_of(c)[0] - normal(4, 200)).square().sum()) for c in (clusterer, fresh)]
    assert errors[0] <= 1.25 * errors[1]
    assert len(weights_of(clusterer)[0].unique()) == len(weights_of(fresh)[0].unique())


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_values_of_another_kind_are_no_start(granularity: str) -> None:
    clusterer = make(normal(4, 5) + 3, spec=CodebookSpec(4, granularity))
    clusterer.update([None])
    zeros = torch.zeros(4, 5, dtype=torch.bool)
    zeros[:, 0] = True
    clusterer.update([zeros])
    assert torch.equal(weights_of(clusterer)[0] == 0, zeros)
    assert all(len(row.unique()) <= 4 for row in weights_of(clusterer)[0])


def test_weights_that_are_not_finite_are_named_in_the_error() -> None:
    clusterer = make(normal(2, 3), torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"^'1\.weight' has weights that are NaN or infinite.* clustered"):
        clusterer.update([None, None])
    with pytest.raises(ValueError, match=r"^'1\.weight' has weights that are NaN or infinite.* clustered"):
        clusterer.soft_clusters([None, None])


# Squared gradients.


def gradients(clusterer: Clusterer, *given: Sequence[float] | None, scale: float = 1.0) -> None:
    for layer, gradient in zip(clusterer.constraint.layers, given, strict=True):
        layer.parameter.grad = None if gradient is None else torch.tensor([gradient]) * scale
    clusterer.accumulator.read(clusterer.constraint.layers, scale)


def test_squares_add_up_over_steps_that_were_made() -> None:
    clusterer = make(torch.ones(1, 2), torch.ones(1, 2), weighted=True)
    layers = clusterer.constraint.layers
    assert not clusterer.is_ready
    gradients(clusterer, [1.0, 2.0], None)
    assert not clusterer.is_ready
    gradients(clusterer, [3.0, 0.0], None, scale=1024.0)  # the first step was skipped
    clusterer.accumulator.step_completed(layers)
    clusterer.accumulator.step_completed(layers)
    assert clusterer.is_ready
    gradients(clusterer, [1.0, 1.0], [2.0, 2.0])
    clusterer.accumulator.step_completed(layers)
    assert {name: value.tolist() for name, value in clusterer.accumulator.sums.items()} == {
        "0.weight": [[10.0, 1.0]],
        "1.weight": [[4.0, 4.0]],
    }


def test_unweighted_clustering_needs_no_gradients() -> None:
    assert make(torch.ones(1, 2)).is_ready


def test_sensitive_weights_are_preferred() -> None:
    weight = torch.tensor([[0.0, 4.0, 10.0]]) + 1
    found = []
    for squares in (None, torch.tensor([[1.0, 3.0, 1.0]]), torch.tensor([[0.0, 0.0, 0.0]])):
        clusterer = make(weight, spec=CodebookSpec(2), weighted=True)
        if squares is not None:
            clusterer.accumulator.sums["0.weight"] = squares
        clusterer.update([None])
        found.append(weights_of(clusterer)[0].flatten().tolist())
    assert found[0] == found[2] == [3.0, 3.0, 11.0]
    assert found[1] == pytest.approx([4.0, 4.0, 11.0], abs=0.02)


def test_a_weight_that_has_not_mattered_has_a_value_near_it() -> None:
    clusterer = make(torch.tensor([[1.0, 1.1, 1.2, 100.0]]), spec=CodebookSpec(2), weighted=True)
    clusterer.accumulator.sums["0.weight"] = torch.tensor([[1.0, 5.0, 1.0, 0.0]])
    clusterer.update([None])
    assert float(weights_of(clusterer)[0][0, 3]) == 100.0


# Soft clusters.


def test_soft_clusters_begin_where_clustering_does() -> None:
    weight = torch.tensor([[1.0, 2.0, 9.0, 8.0], [0.0, 3.0, 3.0, 5.0]])
    clusterer = make(weight, spec=CodebookSpec(3, "channel"))
    (clusters,) = clusterer.soft_clusters([None]).values()
    assert torch.equal(weights_of(clusterer)[0], weight)
    assert clusterer.constraint.assignments == [None]
    assert clusters.codebooks.tolist() == [[1.5, 8.5], [3.0, 5.0]]
    assert clusters.masses.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    # Of the first row 4 times 0.5 squared over 4 weights; of the second next to nothing.
    assert float(clusters.variances[0]) == pytest.approx(0.25)
    assert 0 < float(clusters.variances[1]) < 1e-6


FEW_VALUES = {
    "zero": torch.zeros(4, 8),
    "constant": torch.full((4, 8), 0.3),
    "nearly zero": torch.full((4, 8), 1e-30),
    "signs": normal(4, 8).sign() * 0.2,
    "ternary": torch.tensor([-0.1, 0.0, 0.2]).repeat(4, 11)[:, :32].reshape(4, -1)[:, :8],
    "one row of zeros": torch.cat([torch.zeros(1, 8), normal(3, 8)]),
    "float16": torch.full((4, 8), 3e-4, dtype=torch.float16),
}


@pytest.mark.parametrize("granularity", ["tensor", "channel", 3])
@pytest.mark.parametrize("weight", FEW_VALUES.values(), ids=list(FEW_VALUES))
def test_soft_clusters_of_few_values_are_trained_and_finite(weight: Tensor, granularity: str | int) -> None:
    clusterer = make(weight, spec=CodebookSpec(4, granularity))
    parameter = clusterer.constraint.layers[0].parameter
    (clusters,) = clusterer.soft_clusters([None]).values()
    for step in range(5):
        clusters.sharpness = step / 4
        soft = clusters(parameter)
        soft.backward(normal(4, 8, seed=step).to(weight.dtype))
        clusters.update_codebooks()
        assert parameter.grad.isfinite().all()
        assert parameter.grad.norm() < 100
        with torch.no_grad():
            parameter -= 0.01 * parameter.grad
        parameter.grad = None
    assert (parameter[weight == 0] == 0).all()


def test_soft_clusters_without_zeros_have_no_masses() -> None:
    clusterer = make(torch.tensor([[1.0, 2.0, 9.0, 8.0]]), spec=CodebookSpec(2))
    (clusters,) = clusterer.soft_clusters([None]).values()
    assert clusters.masses is None
    assert clusters.codebooks.tolist() == [[1.5, 8.5]]


@pytest.mark.parametrize("granularity", ["tensor", "channel", 2])
def test_clustering_starts_from_soft_clusters(granularity: str) -> None:
    weight = normal(5, 8)
    weight[:, ::3] = 0.0
    clusterer = make(weight, spec=CodebookSpec(3, granularity))
    (clusters,) = clusterer.soft_clusters([None]).values()
    clusterer.update([None], initial_centers={"0.weight": clusters.codebooks})
    assert torch.equal(weights_of(clusterer)[0] == 0, weight == 0)
    values = clusterer.constraint.assignments[0].values(weights_of(clusterer)[0])
    assert values.numel() == 1 + clusters.codebooks.numel()
