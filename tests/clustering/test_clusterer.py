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


def make(*weights: Tensor, sharing: CodebookSpec = CodebookSpec(4), weighted: bool = False) -> Clusterer:
    layers = [Layer(f"{i}.weight", nn.Parameter(weight.clone())) for i, weight in enumerate(weights)]
    return Clusterer(CodebookConstraint(layers), [sharing] * len(layers), weighted=weighted)


def weights_of(clusterer: Clusterer) -> list[Tensor]:
    return [layer.weight for layer in clusterer.constraint.layers]


def held_of(clusterer: Clusterer, i: int = 0) -> Tensor:
    assignment = clusterer.constraint.assignments[i]
    assert assignment is not None
    return torch.ones_like(assignment.index, dtype=torch.bool) if assignment.free is None else ~assignment.free


def test_weights_of_all_layers_share_values() -> None:
    clusterer = make(torch.tensor([[1.0, 2.0, 9.0, 8.0]]), torch.tensor([[-4.0, -6.0, 3.0]]), sharing=CodebookSpec(2))
    parameters = [layer.parameter for layer in clusterer.constraint.layers]
    clusterer.update([None, None])
    first, second = weights_of(clusterer)
    assert first.tolist() == [[1.5, 1.5, 8.5, 8.5]]
    assert second.tolist() == [[-5.0, -5.0, 3.0]]
    assert all(layer.parameter is p for layer, p in zip(clusterer.constraint.layers, parameters, strict=True))


def test_zeros_that_are_there_stay() -> None:
    clusterer = make(torch.tensor([[0.0, 2.0, -0.0, 3.0, 9.0]]), sharing=CodebookSpec(3))
    clusterer.update([None])
    (weight,) = weights_of(clusterer)
    assert weight.tolist() == [[0.0, 2.5, 0.0, 2.5, 9.0]]
    assert not weight.signbit().any()
    assert clusterer.constraint.assignments[0].pins_zero


def test_zeros_that_are_given_count_instead() -> None:
    clusterer = make(torch.tensor([[0.0, 2.0, 1.0, 3.0]]), sharing=CodebookSpec(3))
    clusterer.update([torch.tensor([[False, True, False, False]])])
    assert weights_of(clusterer)[0].tolist() == [[0.5, 0.0, 0.5, 3.0]]
    clusterer = make(torch.tensor([[0.0, 2.0, 1.0, 3.0]]), sharing=CodebookSpec(2))
    clusterer.update([torch.zeros(1, 4, dtype=torch.bool)])
    assert weights_of(clusterer)[0].tolist() == [[0.5, 2.5, 0.5, 2.5]]
    assert not clusterer.constraint.assignments[0].pins_zero


def test_the_largest_weights_are_held_first() -> None:
    weight = torch.tensor([[0.1, -0.2, 0.9, -1.0, 0.3, 0.8]])
    clusterer = make(weight, sharing=CodebookSpec(2))
    clusterer.update([None], part=0.5)
    assert held_of(clusterer).tolist() == [False, False, True, True, False, True]
    found = weights_of(clusterer)[0]
    assert torch.equal(found[0, ~held_of(clusterer)], weight[0, ~held_of(clusterer)])
    assert len(found[0, held_of(clusterer)].unique()) == 2


def test_no_part_and_all() -> None:
    weight = normal(4, 5)
    clusterer = make(weight)
    clusterer.update([None], part=0.0)
    assert not held_of(clusterer).any()
    assert torch.equal(weights_of(clusterer)[0], weight)
    clusterer.update([None])
    assert clusterer.constraint.assignments[0].free is None


@given(
    parts=st.lists(st.floats(0, 1), min_size=1, max_size=5),
    num_zeros=st.integers(0, 15),
    seed=st.integers(0, 50),
)
@settings(max_examples=60, deadline=None)
def test_parts_that_are_held_grow_and_never_shrink(parts: list[float], num_zeros: int, seed: int) -> None:
    weight = normal(5, 6, seed=seed)
    weight.view(-1)[:num_zeros] = 0.0
    clusterer = make(weight)
    before, most = torch.zeros(30, dtype=torch.bool), 0.0
    for step, part in enumerate(parts):  # they may also become smaller
        clusterer.update([None], part=part)
        held, live = held_of(clusterer), weights_of(clusterer)[0].flatten() != 0
        assert not (before & ~held).any()
        most = max(most, part)
        num_live = 30 - num_zeros
        assert int((held & live).sum()) == round(most * num_live)
        assert held[~live].all(), "zeros are free"
        before = held
        weights_of(clusterer)[0].add_(0.1 * normal(5, 6, seed=seed + step) * live.view(5, 6))
        clusterer.constraint.project_weights_()


def test_weights_of_one_size_are_held_in_the_right_number() -> None:
    clusterer = make(torch.tensor([[0.5, -0.5, 0.5, -0.5, 0.5, 0.5, -0.5, 0.5]]), sharing=CodebookSpec(2))
    clusterer.update([None], part=0.25)
    assert int(held_of(clusterer).sum()) == 2


def test_zeros_that_came_later_free_nothing() -> None:
    weight = torch.tensor([[0.1, 0.2, 0.3, 0.4, 5.0, 6.0, 7.0, 8.0]])
    clusterer = make(weight, sharing=CodebookSpec(3))
    clusterer.update([None], part=0.5)
    zeros = weight < 0.35
    weights_of(clusterer)[0].masked_fill_(zeros, 0.0)
    clusterer.update([zeros], part=0.5)
    assert held_of(clusterer).tolist() == [True, True, True, False, True, True, True, True]
    assert torch.equal(weights_of(clusterer)[0] == 0, zeros)


def test_values_that_there_are_are_the_start() -> None:
    weight = torch.tensor([[0.0, 1.0, 10.0, 11.0, 20.0, 21.0]]) + 1
    stuck = torch.tensor([1.0, 2.0, 16.5])
    clusterer = make(weight, sharing=CodebookSpec(3))
    clusterer.update([None], part=0.0, starts={"0.weight": stuck})
    assert clusterer.constraint.assignments[0].index.tolist() == [0, 1, 2, 2, 2, 2]
    weights_of(clusterer)[0].copy_(torch.tensor([[1.0, 2.0, 16.0, 16.0, 17.0, 17.0]]))
    clusterer.update([None])
    weights_of(clusterer)[0].add_(torch.tensor([[0.5, 0.0, 0.0, 1.0, 0.0, 0.0]]))
    clusterer.constraint.project_weights_()
    clusterer.update([None])
    assert clusterer.constraint.assignments[0].index.tolist() == [0, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("sharing", [CodebookSpec(8), CodebookSpec(8, "channel"), CodebookSpec(8, vector_size=2)])
@pytest.mark.parametrize("part", [0.0, 0.1, 0.5])
def test_no_cluster_is_lost_as_its_members_are_free(sharing: CodebookSpec, part: float) -> None:
    clusterer, fresh = make(normal(4, 200), sharing=sharing), make(normal(4, 200), sharing=sharing)
    clusterer.update([None], part=part)
    clusterer.update([None], part=part)
    clusterer.update([None])
    fresh.update([None])
    errors = [float((weights_of(c)[0] - normal(4, 200)).square().sum()) for c in (clusterer, fresh)]
    assert errors[0] <= 1.25 * errors[1]
    assert len(weights_of(clusterer)[0].unique()) == len(weights_of(fresh)[0].unique())


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_values_of_another_kind_are_no_start(granularity: str) -> None:
    clusterer = make(normal(4, 5) + 3, sharing=CodebookSpec(4, granularity))
    clusterer.update([None])
    zeros = torch.zeros(4, 5, dtype=torch.bool)
    zeros[:, 0] = True
    clusterer.update([zeros])
    assert torch.equal(weights_of(clusterer)[0] == 0, zeros)
    assert all(len(row.unique()) <= 4 for row in weights_of(clusterer)[0])


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    clusterer = make(normal(2, 3), torch.tensor([[1.0, torch.nan]]))
    with pytest.raises(ValueError, match=r"^'1\.weight' has weights that are not finite.*lower the learning rate\.$"):
        clusterer.update([None, None])


# Evidence.


def gradients(clusterer: Clusterer, *given: Sequence[float] | None, scale: float = 1.0) -> None:
    for layer, gradient in zip(clusterer.constraint.layers, given, strict=True):
        layer.parameter.grad = None if gradient is None else torch.tensor([gradient]) * scale
    clusterer.read_gradients(clusterer.constraint.layers, scale)


def test_squares_add_up_over_steps_that_were_made() -> None:
    clusterer = make(torch.ones(1, 2), torch.ones(1, 2), weighted=True)
    layers = clusterer.constraint.layers
    assert not clusterer.has_accumulated_scores
    gradients(clusterer, [1.0, 2.0], None)
    assert not clusterer.has_accumulated_scores
    gradients(clusterer, [3.0, 0.0], None, scale=1024.0)  # the first step was skipped
    clusterer.step_completed(layers)
    clusterer.step_completed(layers)
    assert clusterer.has_accumulated_scores
    gradients(clusterer, [1.0, 1.0], [2.0, 2.0])
    clusterer.step_completed(layers)
    assert {name: value.tolist() for name, value in clusterer.squares.items()} == {
        "0.weight": [[10.0, 1.0]],
        "1.weight": [[4.0, 4.0]],
    }


def test_unweighted_clusters_need_no_evidence() -> None:
    assert make(torch.ones(1, 2)).has_accumulated_scores


def test_sensitive_weights_are_preferred() -> None:
    weight = torch.tensor([[0.0, 4.0, 10.0]]) + 1
    found = []
    for squares in (None, torch.tensor([[1.0, 3.0, 1.0]]), torch.tensor([[0.0, 0.0, 0.0]])):
        clusterer = make(weight, sharing=CodebookSpec(2), weighted=True)
        if squares is not None:
            clusterer.squares["0.weight"] = squares
        clusterer.update([None])
        found.append(weights_of(clusterer)[0].flatten().tolist())
    assert found[0] == found[2] == [3.0, 3.0, 11.0]
    assert found[1] == pytest.approx([4.0, 4.0, 11.0], abs=0.02)


def test_a_weight_that_has_not_mattered_has_a_value_near_it() -> None:
    clusterer = make(torch.tensor([[1.0, 1.1, 1.2, 100.0]]), sharing=CodebookSpec(2), weighted=True)
    clusterer.squares["0.weight"] = torch.tensor([[1.0, 5.0, 1.0, 0.0]])
    clusterer.update([None])
    assert float(weights_of(clusterer)[0][0, 3]) == 100.0


def test_state_goes_round_and_is_not_shared() -> None:
    clusterer, other = (make(torch.ones(1, 2), weighted=True) for _ in range(2))
    gradients(clusterer, [1.0, 2.0])
    clusterer.step_completed(clusterer.constraint.layers)
    other.load_state_dict(clusterer.state_dict())
    gradients(clusterer, [1.0, 2.0])
    clusterer.step_completed(clusterer.constraint.layers)
    assert other.squares["0.weight"].tolist() == [[1.0, 4.0]]
    assert clusterer.squares["0.weight"].tolist() == [[2.0, 8.0]]


# Soft clusters.


def test_soft_clusters_begin_where_clustering_does() -> None:
    weight = torch.tensor([[1.0, 2.0, 9.0, 8.0], [0.0, 3.0, 3.0, 5.0]])
    clusterer = make(weight, sharing=CodebookSpec(3, "channel"))
    (clusters,) = clusterer.soft([None]).values()
    assert torch.equal(weights_of(clusterer)[0], weight)
    assert clusterer.constraint.assignments == [None]
    assert clusters.codebooks.tolist() == [[1.5, 8.5], [3.0, 5.0]]
    assert clusters.masses.tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    # Of the first row 4 times 0.5 squared over 4 weights; of the second next to nothing.
    assert float(clusters.variances[0]) == pytest.approx(0.25)
    assert 0 < float(clusters.variances[1]) < 1e-6


def test_soft_clusters_without_zeros_have_no_masses() -> None:
    clusterer = make(torch.tensor([[1.0, 2.0, 9.0, 8.0]]), sharing=CodebookSpec(2))
    (clusters,) = clusterer.soft([None]).values()
    assert clusters.masses is None
    assert clusters.codebooks.tolist() == [[1.5, 8.5]]


@pytest.mark.parametrize("granularity", ["tensor", "channel", 2])
def test_clustering_starts_from_soft_clusters(granularity: str) -> None:
    weight = normal(5, 8)
    weight[:, ::3] = 0.0
    clusterer = make(weight, sharing=CodebookSpec(3, granularity))
    (clusters,) = clusterer.soft([None]).values()
    clusterer.update([None], starts={"0.weight": clusters.codebooks})
    assert torch.equal(weights_of(clusterer)[0] == 0, weight == 0)
    values = clusterer.constraint.assignments[0].values(weights_of(clusterer)[0])
    assert values.numel() == 1 + clusters.codebooks.numel()
