from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_compress.pruning.distributions import ERK, Distribution, Uniform

SHAPES = [torch.Size(s) for s in [(16, 3, 3, 3), (32, 16, 3, 3), (32, 32, 1, 1), (10, 32)]]


def test_uniform() -> None:
    assert Uniform().num_pruned([torch.Size([10, 10]), torch.Size([4, 5])], 0.9) == [90, 18]


def test_uniform_sums_exactly_where_parts_do_not_divide() -> None:
    assert Uniform().num_pruned([torch.Size([3, 1])] * 3, 0.5) == [2, 1, 1]


def test_erk_makes_larger_layers_sparser() -> None:
    pruned = ERK().num_pruned(SHAPES, 0.9)
    sparsities = [n / shape.numel() for n, shape in zip(pruned, SHAPES, strict=True)]
    assert sparsities[1] == max(sparsities)
    assert sum(pruned) == round(sum(s.numel() for s in SHAPES) * 0.9)


@given(
    distribution=st.sampled_from([Uniform(), ERK()]),
    sparsity=st.floats(0, 0.99),
    shapes=st.lists(st.lists(st.integers(1, 20), min_size=2, max_size=4), min_size=1, max_size=6),
)
@settings(max_examples=150, deadline=None)
def test_the_sum_is_the_sparsity_of_all(distribution: Distribution, sparsity: float, shapes: list[list[int]]) -> None:
    sizes = [torch.Size(shape) for shape in shapes]
    pruned = distribution.num_pruned(sizes, sparsity)
    assert sum(pruned) == round(sum(s.numel() for s in sizes) * sparsity)
    assert all(0 <= n <= s.numel() for n, s in zip(pruned, sizes, strict=True))
    densities = distribution.densities(sizes, 1 - sparsity)
    for n, size, density in zip(pruned, sizes, densities, strict=True):
        assert abs(n - size.numel() * (1 - density)) <= 1 + 1e-6
