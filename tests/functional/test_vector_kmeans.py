"""k-means of vectors against Lloyd's algorithm as it is written down."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional import vector_kmeans as module
from lightning_compress.functional.kmeans import cluster_rows
from lightning_compress.functional.vector_kmeans import cluster_vectors
from tests.functional.inertia import inertia


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(vectors: Tensor, codebook: Tensor, index: Tensor, weights: Tensor | None = None) -> float:
    squares = (vectors - codebook[index.long()]).square()
    return float((squares if weights is None else squares * weights).sum())


def test_three_corners() -> None:
    vectors = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 8.0], [0.0, 2.0], [9.0, 2.0], [0.0, 10.0]])
    codebook, index = cluster_vectors(vectors, 3)
    assert sorted(codebook.tolist()) == [[0.0, 1.0], [0.0, 9.0], [9.0, 1.0]]
    assert codebook[index.long()].tolist() == [[0, 1], [9, 1], [0, 9], [0, 1], [9, 1], [0, 9]]
    assert index.dtype == torch.int32


def test_one_cluster_is_the_mean_of_each_dimension_by_its_weights() -> None:
    vectors, weights = torch.tensor([[0.0, 1.0], [4.0, 5.0]]), torch.tensor([[3.0, 1.0], [1.0, 1.0]])
    assert cluster_vectors(vectors, 1)[0].tolist() == [[2.0, 3.0]]
    assert cluster_vectors(vectors, 1, weights=weights)[0].tolist() == [[1.0, 3.0]]


def lloyd(points: Tensor, weights: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """From given centers, one vector and one center at a time."""
    centers = centers.clone()
    for _ in range(module._MAX_ITERATIONS):
        before = centers.clone()
        distances = [
            [float((w * (x - c).square()).sum()) for c in centers] for x, w in zip(points, weights, strict=True)
        ]
        index = torch.tensor([row.index(min(row)) for row in distances])
        for k in range(len(centers)):
            chosen = index == k
            if chosen.any():
                centers[k] = (weights[chosen] * points[chosen]).sum(0) / weights[chosen].sum(0)
        if torch.equal(before, centers):
            break
    return centers, index


@pytest.mark.parametrize("dimensions", [1, 2, 4])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_algorithm(dimensions: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    points = normal(40, dimensions).double()
    weights = normal(40, dimensions, seed=1).double().abs() if weighted else torch.ones_like(points)
    start = points[:4]
    expected, index = lloyd(points, weights, start)
    assert len(index.unique()) == 4
    for cells in (2**22, 12):  # the second: three vectors at a time
        monkeypatch.setattr(module, "_MAX_CELLS", cells)
        found, others = cluster_vectors(points, 4, weights=weights if weighted else None, initial_centers=start)
        torch.testing.assert_close(found, expected)
        assert torch.equal(others.long(), index)


@given(
    points=st.lists(st.tuples(*[st.integers(-3, 3)] * 2), min_size=3, max_size=12),
    num_clusters=st.integers(1, 3),
    weighted=st.booleans(),
    seed=st.integers(0, 20),
)
@settings(max_examples=80, deadline=None)
def test_each_vector_has_the_nearest_entry(
    points: list[tuple[int, int]], num_clusters: int, weighted: bool, seed: int
) -> None:
    vectors = torch.tensor(points).double()
    weights = normal(len(points), 2, seed=seed).abs().double() + 0.1 if weighted else torch.ones_like(vectors)
    codebook, index = cluster_vectors(vectors, num_clusters, weights=weights, seed=seed)
    distances = (weights.unsqueeze(1) * (vectors.unsqueeze(1) - codebook).square()).sum(dim=2)
    chosen = distances.gather(1, index.long().unsqueeze(1)).squeeze(1)
    assert (chosen <= distances.amin(dim=1) + 1e-9).all()
    assert codebook.isfinite().all()


def test_single_numbers_come_near_the_optimum() -> None:
    row = normal(1, 3000)
    codebook, index = cluster_vectors(row.view(-1, 1), 8)
    assert error(row.view(-1, 1), codebook, index) <= 1.2 * inertia(row, *cluster_rows(row, 8))


def test_an_empty_cluster_begins_anew_at_the_farthest_vector() -> None:
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [50.0, 50.0]])
    start = torch.tensor([[0.0, 0.0], [-99.0, -99.0]])
    codebook, index = cluster_vectors(vectors, 2, initial_centers=start)
    assert index.tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(codebook, torch.tensor([[1 / 3, 1 / 3], [50.0, 50.0]]))


def test_several_empty_clusters_begin_at_different_vectors() -> None:
    vectors = torch.tensor([[0.0, 0.0], [1.0, 0.0], [30.0, 0.0], [0.0, 50.0]])
    start = torch.tensor([[0.0, 0.0], [-99.0, -99.0], [-99.0, -98.0]])
    codebook, index = cluster_vectors(vectors, 3, initial_centers=start)
    assert codebook[index.long()].tolist() == [[0.5, 0.0], [0.5, 0.0], [30.0, 0.0], [0.0, 50.0]]


def test_as_many_clusters_as_vectors_lose_nothing() -> None:
    vectors = normal(20, 4)
    codebook, index = cluster_vectors(vectors, 20)
    assert torch.equal(codebook[index.long()], vectors)


@pytest.mark.parametrize("value", [0.0, 0.1, -3.0])
def test_vectors_that_are_all_the_same(value: float) -> None:
    vectors = torch.full((10, 2), value)
    codebook, index = cluster_vectors(vectors, 4)
    assert torch.equal(codebook[index.long()], vectors)
    assert codebook.isfinite().all()


def test_vectors_without_weight_move_nothing_and_are_assigned() -> None:
    vectors = torch.tensor([[0.0, 0.0], [0.0, 2.0], [8.0, 8.0], [3.0, 3.0]])
    weights = torch.tensor([[1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [0.0, 0.0]])
    codebook, index = cluster_vectors(vectors, 2, weights=weights)
    assert sorted(codebook.tolist()) == [[0.0, 1.0], [8.0, 8.0]]
    assert 0 <= int(index[3]) < 2


def test_a_factor_of_all_weights_does_not_matter() -> None:
    vectors, weights = normal(60, 2), normal(60, 2, seed=1).abs() + 0.1
    codebook, index = cluster_vectors(vectors, 4, weights=weights)
    scaled, scaled_index = cluster_vectors(vectors, 4, weights=weights * 2.0**-12)
    assert torch.equal(scaled_index, index)
    torch.testing.assert_close(scaled, codebook)


def test_no_weight_at_all() -> None:
    vectors = normal(6, 2)
    codebook, index = cluster_vectors(vectors, 3, weights=torch.zeros_like(vectors))
    assert codebook.isfinite().all()
    assert index.shape == (6,)


def test_the_same_is_found_again_and_other_draws_by_other_seeds() -> None:
    vectors = normal(500, 2)
    first, again, other = (cluster_vectors(vectors, 16, seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_draws_are_far_apart() -> None:
    vectors = torch.tensor([[0.0, 0.0]] * 50 + [[5.0, 1.0], [-9.0, 2.0]], dtype=torch.float64)
    for seed in range(20):
        drawn = module._kmeans_plus_plus(vectors, torch.ones_like(vectors), 3, seed)
        assert sorted(drawn.tolist()) == [[-9.0, 2.0], [0.0, 0.0], [5.0, 1.0]]


def test_draws_among_some_of_many_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_CANDIDATES", 50)
    centers = normal(5, 2) * 20
    vectors = centers.repeat(200, 1) + 0.01 * normal(1000, 2, seed=1)
    codebook, index = cluster_vectors(vectors, 5)
    assert error(vectors, codebook, index) < 1000 * 2 * 0.01**2 * 1.2
    codebook, index = cluster_vectors(vectors, 200)  # more than are drawn from
    assert codebook.shape == (200, 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    vectors = normal(50, 2).to(dtype)
    codebook, index = cluster_vectors(vectors, 4)
    expected, others = cluster_vectors(vectors.double(), 4)
    assert codebook.dtype == dtype
    assert torch.equal(codebook, expected.to(dtype))
    assert torch.equal(index, others)


def test_up_to_a_limit_all_vectors_are_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = normal(6, 2)
    expected = cluster_vectors(vectors, 3)
    monkeypatch.setattr(module, "_MAX_CANDIDATES", 6)
    monkeypatch.setattr(torch, "randperm", lambda number, generator: torch.zeros(number, dtype=torch.long))
    assert all(torch.equal(found, same) for found, same in zip(cluster_vectors(vectors, 3), expected, strict=True))
    monkeypatch.setattr(module, "_MAX_CANDIDATES", 5)
    masses = torch.ones(6, 2, dtype=torch.double)
    chosen = module._kmeans_plus_plus(vectors.double(), masses, 3, 0)
    assert torch.equal(chosen, vectors[:1].double().expand(3, 2))
