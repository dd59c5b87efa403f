"""1-D k-means against brute force over all partitions, and against dynamic programming over all points."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_compress.functional import kmeans
from lightning_compress.functional.kmeans import cluster_rows
from lightning_compress.functional.weighted_points import sort_values
from tests.functional.inertia import inertia

INITS = ["optimal", "kmeans++", "linear", "density"]
LONG = 9000  # longer than the rows that are sorted


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def brute_force(row: list[float], num_clusters: int, weights: list[float]) -> float:
    """The smallest inertia of all partitions of the sorted numbers into at most ``num_clusters`` contiguous parts."""
    pairs = sorted((x, w) for x, w in zip(row, weights, strict=True) if w > 0)
    points, masses = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))

    def cost(begin: int, end: int) -> float:
        x, w = points[begin:end], masses[begin:end]
        return float((w * (x - (w * x).sum() / w.sum()) ** 2).sum())

    n = len(points)
    partitions = combinations(range(1, n), min(num_clusters, n) - 1)
    return min(sum(cost(a, b) for a, b in zip((0, *cuts), (*cuts, n), strict=True)) for cuts in partitions)


def optima(row: Tensor, largest: int, weights: Tensor | None = None) -> np.ndarray:
    """The smallest inertia for 1, 2, ... and ``largest`` clusters, by dynamic programming over all points."""
    order = np.argsort(row.double().numpy())
    x = row.double().numpy()[order]
    x = x - x.mean()
    w = np.ones_like(x) if weights is None else weights.double().numpy()[order]
    masses, moments, squares = (np.concatenate([[0.0], np.cumsum(v)]) for v in (w, w * x, w * x * x))
    best = np.full((largest + 1, len(x) + 1), np.inf)
    best[0, 0] = 0.0
    for j in range(1, len(x) + 1):
        mass, moment = masses[j] - masses[:j], moments[j] - moments[:j]
        cost = squares[j] - squares[:j] - moment**2 / mass
        best[1:, j] = (best[:-1, :j] + cost.clip(0)).min(axis=1)
    return best[1:, -1]


def heavy(n: int) -> Tensor:
    row = torch.distributions.StudentT(3.0).sample((n,)).float()
    row[:3] = torch.tensor([60.0, -45.0, 100.0])
    return row


DATA = {
    "normal": lambda n: 0.02 * torch.randn(n),
    "laplacian": lambda n: torch.distributions.Laplace(0.01, 0.1).sample((n,)),
    "uniform": lambda n: torch.rand(n) - 0.3,
    "heavy": heavy,
    "bimodal": lambda n: torch.cat([torch.randn(n // 3) - 4, 0.3 * torch.randn(n - n // 3) + 1]),
    "far from zero": lambda n: 100 + 0.01 * torch.randn(n),
}
every_kind = pytest.mark.parametrize("kind", DATA)


def sample(kind: str, n: int) -> Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return DATA[kind](n)


# The optimum.


@given(
    row=st.lists(st.integers(-20, 20).map(lambda i: i / 4), min_size=1, max_size=9),
    num_clusters=st.integers(1, 5),
    data=st.data(),
)
@settings(max_examples=150, deadline=None)
def test_no_partition_of_a_short_row_is_better(row: list[float], num_clusters: int, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.sampled_from([0.0, 0.5, 1.0, 3.0]), min_size=len(row), max_size=len(row)))
    weights[0] = 1.0
    for given_weights in (None, torch.tensor([weights])):
        found = cluster_rows(torch.tensor([row]), num_clusters, weights=given_weights)
        best = brute_force(row, num_clusters, [1.0] * len(row) if given_weights is None else weights)
        assert inertia(torch.tensor([row]), *found, given_weights) == pytest.approx(best, rel=1e-5, abs=1e-9)


@every_kind
def test_inertia_of_a_sorted_row(kind: str) -> None:
    row = sample(kind, 2500)
    for num_clusters, best in enumerate(optima(row, 16), start=1):
        assert inertia(row[None], *cluster_rows(row[None], num_clusters)) <= best * 1.001


@every_kind
def test_inertia_of_a_binned_row(kind: str) -> None:
    some = sample(kind, 2500)
    row = some.repeat_interleave(4)[None]
    assert row.shape[1] > kmeans._MAX_SORTED
    for num_clusters, best in enumerate(4 * optima(some, 16), start=1):
        assert inertia(row, *cluster_rows(row, num_clusters)) <= best * 1.001


@every_kind
def test_weighted_inertia_of_sorted_and_binned_rows(kind: str) -> None:
    some, weights = sample(kind, 2000), normal(2000, seed=1).square() + 0.01
    best = optima(some, 9, weights)
    for copies in (1, 5):
        row, masses = some.repeat_interleave(copies)[None], weights.repeat_interleave(copies)[None]
        for num_clusters in (2, 4, 9):
            found = inertia(row, *cluster_rows(row, num_clusters, weights=masses), masses)
            assert found <= copies * best[num_clusters - 1] * 1.001


@pytest.mark.slow
@every_kind
def test_inertia_of_distinct_numbers(kind: str) -> None:
    for n in (8000, 12000):
        row = sample(kind, n)
        for num_clusters, best in enumerate(optima(row, 16), start=1):
            assert inertia(row[None], *cluster_rows(row[None], num_clusters)) <= best * 1.001


@pytest.mark.parametrize("columns", [3000, 30_000])
def test_many_clusters_are_near_the_asymptote_of_quantizers(columns: int) -> None:
    row = normal(1, columns)
    # Panter and Dite: a normal distribution and N levels leave (sqrt(3) pi / 2) / N^2 of its variance.
    asymptote = columns * 3**0.5 * torch.pi / 2 / 128**2
    assert inertia(row, *cluster_rows(row, 128)) < asymptote * 1.05


# Properties of the result.


@pytest.mark.parametrize("init", INITS)
def test_two_far_groups(init: kmeans.Init) -> None:
    rows = torch.tensor([[9.0, 1.0, 2.0, 8.0], [-1.0, -3.0, -21.0, -19.0]])
    codebooks, assignments = cluster_rows(rows, 2, init=init)
    assert codebooks.tolist() == [[1.5, 8.5], [-20.0, -2.0]]
    assert assignments.tolist() == [[1, 0, 0, 1], [1, 1, 0, 0]]
    assert assignments.dtype == torch.int32


def test_one_cluster_is_the_mean() -> None:
    codebooks, assignments = cluster_rows(torch.tensor([[1.0, 2.0, 6.0]]), 1, weights=torch.tensor([[1.0, 1.0, 2.0]]))
    assert codebooks.tolist() == [[3.75]]
    assert assignments.tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("columns", [50, LONG])
@pytest.mark.parametrize("num_clusters", [2, 5, 16, 100])
def test_codebooks_ascend_and_numbers_have_the_nearest_value(columns: int, num_clusters: int) -> None:
    rows = normal(3, columns) * torch.tensor([[1.0], [0.01], [30.0]])
    codebooks, assignments = cluster_rows(rows, num_clusters)
    assert (codebooks.diff(dim=1) >= 0).all()
    distances = (rows.unsqueeze(2) - codebooks.unsqueeze(1)).abs()
    chosen = distances.gather(2, assignments.long().unsqueeze(2)).squeeze(2)
    spare = 1e-6 if columns == 50 else 1 / kmeans._NUM_BINS  # numbers at an edge go with their bin
    assert (chosen <= distances.amin(dim=2) + spare * (rows.amax(1) - rows.amin(1)).unsqueeze(1)).all()


@pytest.mark.parametrize("columns", [200, LONG])
def test_values_are_the_means_of_their_members(columns: int) -> None:
    rows, weights = normal(2, columns), normal(2, columns, seed=1).abs()
    codebooks, assignments = cluster_rows(rows, 7, weights=weights)
    masses = torch.zeros_like(codebooks).scatter_add_(1, assignments.long(), weights)
    sums = torch.zeros_like(codebooks).scatter_add_(1, assignments.long(), weights * rows)
    torch.testing.assert_close(codebooks, sums / masses, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("columns", [40, LONG])
@pytest.mark.parametrize("init", INITS)
def test_rows_do_not_see_each_other(columns: int, init: kmeans.Init, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = normal(7, columns) * torch.logspace(-3, 3, 7).unsqueeze(1) + torch.arange(7).unsqueeze(1)
    weights = normal(7, columns, seed=1).abs()
    together = cluster_rows(rows, 5, weights=weights, init=init)
    monkeypatch.setattr(kmeans, "_MAX_CELLS", 1)  # a row at a time
    apart = cluster_rows(rows, 5, weights=weights, init=init)
    if init != "kmeans++":  # whose draws for later rows depend on how many there are
        assert all(torch.equal(a, b) for a, b in zip(together, apart, strict=True))
    first = cluster_rows(rows[:1], 5, weights=weights[:1], init=init)
    assert torch.equal(first[0], apart[0][:1])


@pytest.mark.parametrize("columns", [40, LONG])
@pytest.mark.parametrize("init", INITS)
def test_numbers_without_weight_move_nothing_and_are_assigned(columns: int, init: kmeans.Init) -> None:
    rows, strangers = normal(1, columns), torch.tensor([[-0.5, 0.1, 0.9]])
    ones = torch.ones_like(rows)
    if columns == LONG:  # inside of the range, which is that of the bins
        assert rows.min() < strangers.min()
    alone, _ = cluster_rows(rows, 4, init=init, weights=ones)
    codebooks, assignments = cluster_rows(
        torch.cat([rows, strangers], dim=1), 4, init=init, weights=torch.cat([ones, 0 * strangers], dim=1)
    )
    torch.testing.assert_close(codebooks, alone)
    nearest = (strangers.unsqueeze(2) - codebooks.unsqueeze(1)).abs().argmin(dim=2)
    assert assignments[:, -3:].tolist() == nearest.tolist()


def test_a_number_without_weight_outside_of_all_others() -> None:
    rows, weights = torch.tensor([[-100.0, 1.0, 2.0, 8.0, 9.0, 100.0]]), torch.tensor([[0.0, 1, 1, 1, 1, 0]])
    for init in INITS:
        codebooks, assignments = cluster_rows(rows, 2, weights=weights, init=init)
        assert codebooks.tolist() == [[1.5, 8.5]]
        assert assignments.tolist() == [[0, 0, 0, 1, 1, 1]]


@pytest.mark.parametrize("columns", [4, LONG])
@pytest.mark.parametrize("init", INITS)
def test_a_row_without_any_weight(columns: int, init: kmeans.Init) -> None:
    rows = normal(1, columns)
    codebooks, assignments = cluster_rows(rows, 3, weights=torch.zeros_like(rows), init=init)
    assert codebooks.isfinite().all()
    assert codebooks.min() >= rows.min()
    assert codebooks.max() <= rows.max()
    assert assignments.shape == rows.shape


@pytest.mark.parametrize("columns", [1, 5, LONG])
@pytest.mark.parametrize("value", [0.0, 0.1, -3.0, 1e-42, -3e38])
@pytest.mark.parametrize("init", INITS)
def test_a_constant_row_is_unchanged(columns: int, value: float, init: kmeans.Init) -> None:
    rows = torch.full((2, columns), value)
    codebooks, assignments = cluster_rows(rows, 4, init=init)
    assert torch.equal(codebooks.gather(1, assignments.long()), rows)
    assert torch.equal(codebooks, rows[:, :1].expand(2, 4))


@pytest.mark.parametrize("copies", [1, 4, LONG])
@pytest.mark.parametrize("num_clusters", [3, 4, 20, 80])
def test_as_many_clusters_as_values_lose_nothing(copies: int, num_clusters: int) -> None:
    rows = torch.tensor([[-0.7, 0.1, 0.3]]).repeat(1, copies)
    codebooks, assignments = cluster_rows(rows, num_clusters)
    assert torch.equal(codebooks.gather(1, assignments.long()), rows)
    assert set(codebooks.flatten().tolist()) == set(rows.flatten().tolist())


@pytest.mark.parametrize("copies", [1, 20, 100])
@pytest.mark.parametrize("num_clusters", [100, 128, 256])
def test_as_many_clusters_as_many_values_lose_next_to_nothing(copies: int, num_clusters: int) -> None:
    rows = normal(1, 100).repeat(1, copies)
    assert inertia(rows, *cluster_rows(rows, num_clusters)) < 1e-4 * rows.numel()


@pytest.mark.parametrize("columns", [100, LONG])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e18, 1e38])
def test_tiny_and_huge_numbers(columns: int, scale: float) -> None:
    rows = normal(1, columns).double().mul(scale).clamp(-3e38, 3e38).float()
    codebooks, assignments = cluster_rows(rows, 4)
    assert codebooks.isfinite().all()
    assert (codebooks.diff(dim=1) > 0).all()
    rounded = codebooks.gather(1, assignments.long()).double() / scale
    # Of a normal distribution 4 values leave 11.75 % of the variance.
    assert (rows.double() / scale - rounded).square().mean() < 0.15


@pytest.mark.parametrize("columns", [100, LONG])
def test_numbers_that_are_all_negative(columns: int) -> None:
    rows = -normal(1, columns).abs() - 1
    (codebooks, assignments), (mirrored, others) = cluster_rows(rows, 5), cluster_rows(-rows, 5)
    assert (codebooks <= -1).all()
    assert inertia(rows, codebooks, assignments) == pytest.approx(inertia(-rows, mirrored, others), rel=1e-3)


@pytest.mark.parametrize("columns", [100, LONG])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes(columns: int, dtype: torch.dtype) -> None:
    rows = normal(2, columns).to(dtype)
    codebooks, assignments = cluster_rows(rows, 6, weights=torch.ones_like(rows))
    assert codebooks.dtype == dtype
    assert (codebooks.diff(dim=1) > 0).all()
    expected, others = cluster_rows(rows.double(), 6)
    torch.testing.assert_close(codebooks.double(), expected, rtol=torch.finfo(dtype).eps, atol=1e-3)
    assert (assignments == others).float().mean() > 0.99


def test_float64_is_told_apart_where_float32_is_not() -> None:
    rows = 1 + torch.tensor([[0.0, 1e-10, 5e-10, 6e-10]], dtype=torch.float64)
    assert cluster_rows(rows, 2)[1].tolist() == [[0, 0, 1, 1]]


@pytest.mark.parametrize("columns", [100, LONG])
@pytest.mark.parametrize("init", INITS)
def test_the_same_is_found_again(columns: int, init: kmeans.Init) -> None:
    rows = normal(3, columns)
    found, again = cluster_rows(rows, 8, init=init), cluster_rows(rows.clone(), 8, init=init)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("columns", [100, LONG])
def test_rows_may_be_laid_out_otherwise(columns: int) -> None:
    rows = normal(columns, 3).T
    found, expected = cluster_rows(rows, 4, weights=rows.abs()), cluster_rows(rows.contiguous(), 4, weights=rows.abs())
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_arguments_are_not_modified() -> None:
    for columns in (100, LONG):
        rows, weights, start = normal(2, columns), normal(2, columns, seed=1).abs(), torch.tensor([[-1.0, 1.0]] * 2)
        copies = [t.clone() for t in (rows, weights, start)]
        cluster_rows(rows, 2, weights=weights, initial_centers=start)
        assert all(torch.equal(a, b) for a, b in zip((rows, weights, start), copies, strict=True))


# Initialization.


@pytest.mark.parametrize("columns", [2000, LONG])
@pytest.mark.parametrize("init", INITS)
def test_no_start_is_better_than_the_optimum(columns: int, init: kmeans.Init) -> None:
    rows = normal(1, columns)
    best, found = (inertia(rows, *cluster_rows(rows, 16, init=i)) for i in ("optimal", init))
    assert best <= found * 1.001
    assert found <= best * 1.5


def starts(row: list[float], num_clusters: int, init: str, seed: int = 0) -> list[float]:
    points = sort_values(torch.tensor([row]), None)
    return kmeans._INITS[init](points, num_clusters, seed).flatten().tolist()


def test_linear_is_even_between_minimum_and_maximum() -> None:
    assert starts([0.0, 7.0, 1.0, 8.0], 3, "linear") == [0.0, 4.0, 8.0]


def test_density_is_even_among_the_sorted_numbers() -> None:
    assert starts([0.0, 1.0, 2.0, 3.0, 4.0, 100.0], 3, "density") == [0.0, 2.0, 4.0]


def test_draws_are_numbers_of_the_row_and_far_apart() -> None:
    row = [0.0, 0.0, 0.0, 0.0, 5.0, -9.0]
    for seed in range(20):
        assert starts(row, 3, "kmeans++", seed) == [-9.0, 0.0, 5.0]
    firsts = [starts(row, 1, "kmeans++", seed) for seed in range(20)]
    assert len({first[0] for first in firsts}) == 3


def test_seeds_draw_differently() -> None:
    rows = normal(1, 1000)
    found = [cluster_rows(rows, 16, init="kmeans++", seed=seed)[0] for seed in (0, 1)]
    assert not torch.equal(*found)


def test_a_start_that_is_settled_stays() -> None:
    # The middle of the values is 5, and they are means: a local optimum, and not the best.
    rows = torch.tensor([[0.0, 4.0, 6.0, 10.0, 10.0, 30.0]])
    start = torch.tensor([[5.0, 40.0]])
    codebooks, assignments = cluster_rows(rows, 2, initial_centers=start)
    assert codebooks.tolist() == [[6.0, 30.0]]
    assert assignments.tolist() == [[0, 0, 0, 0, 0, 1]]
    local = torch.tensor([[0.0, 1.0, 10.0, 11.0, 20.0, 21.0]])
    codebooks, _ = cluster_rows(local, 3, initial_centers=torch.tensor([[0.0, 1.0, 15.5]]))
    assert codebooks.tolist() == [[0.0, 1.0, 15.5]]
    assert cluster_rows(local, 3)[0].tolist() == [[0.5, 10.5, 20.5]]


def test_a_start_is_of_each_row() -> None:
    rows = torch.tensor([[0.0, 1.0, 10.0, 11.0, 20.0, 21.0]] * 2)
    start = torch.tensor([[0.0, 1.0, 15.5], [0.0, 10.0, 20.0]])
    assert cluster_rows(rows, 3, initial_centers=start)[0].tolist() == [[0.0, 1.0, 15.5], [0.5, 10.5, 20.5]]


@pytest.mark.parametrize("columns", [2000, LONG])
def test_found_codebooks_are_a_fixed_point(columns: int) -> None:
    rows = normal(2, columns)
    codebooks, assignments = cluster_rows(rows, 8)
    again, others = cluster_rows(rows, 8, initial_centers=codebooks)
    torch.testing.assert_close(again, codebooks)
    assert torch.equal(others, assignments)


def test_an_empty_cluster_keeps_its_value() -> None:
    rows = torch.tensor([[1.0, 2.0, 3.0]])
    codebooks, assignments = cluster_rows(rows, 3, initial_centers=torch.tensor([[-50.0, 2.0, 70.0]]))
    assert codebooks.tolist() == [[-50.0, 2.0, 70.0]]
    assert assignments.tolist() == [[1, 1, 1]]


def test_inertia_is_weighted() -> None:
    rows, codebooks = torch.tensor([[0.0, 1.0, 5.0]]), torch.tensor([[0.5, 3.0]])
    assignments = torch.tensor([[0, 0, 1]], dtype=torch.int32)
    assert inertia(rows, codebooks, assignments) == 4.5
    assert inertia(rows, codebooks, assignments, torch.tensor([[4.0, 0.0, 2.0]])) == 9.0
