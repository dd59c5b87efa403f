from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_compress.constraints.layer import Layer
from lightning_compress.pruning.distributions import ERK, Distribution, Uniform
from lightning_compress.pruning.patterns import Block, Unstructured, WeightPattern
from lightning_compress.pruning.ranking_groups import RankingGroup, make_ranking_groups


def layers(**sizes: int) -> list[Layer]:
    return [Layer(f"{n.replace('_', '.')}.weight", nn.Parameter(torch.ones(s, 1))) for n, s in sizes.items()]


def test_all_layers_together() -> None:
    assert make_ranking_groups(layers(a=10, b=25), 0.9, None) == [RankingGroup((0, 1), 32, 35)]


def test_each_layer_by_itself() -> None:
    groups = make_ranking_groups(layers(a=10, b=20), 0.9, Uniform())
    assert groups == [RankingGroup((0,), 9, 10), RankingGroup((1,), 18, 20)]
    assert [group.sparsity for group in groups] == [0.9, 0.9]


def test_globs_make_ranking_groups_and_the_first_match_counts() -> None:
    groups = make_ranking_groups(layers(enc_0=10, enc_1=10, dec=10), {"enc.1": 0.5, "enc": 0.8}, None)
    assert groups == [RankingGroup((1,), 5, 10), RankingGroup((0,), 8, 10)]


def test_layers_without_a_match_stay_dense() -> None:
    assert make_ranking_groups(layers(a=10, b=10), {"a": 0.5}, None) == [RankingGroup((0,), 5, 10)]


def test_globs_with_a_distribution() -> None:
    groups = make_ranking_groups(layers(enc_0=10, enc_1=20, dec=10), {"enc": 0.5, "dec": 0.1}, Uniform())
    assert groups == [RankingGroup((0,), 5, 10), RankingGroup((1,), 10, 20), RankingGroup((2,), 1, 10)]


def test_a_glob_that_matches_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"sparsity: 'decoder' matches no selected layer; the names are 'a', 'b'"):
        make_ranking_groups(layers(a=10, b=10), {"a": 0.5, "decoder": 0.5}, None)


def test_a_layer_that_would_be_emptied_is_named() -> None:
    with pytest.raises(ValueError, match=r"leaves 0 weights for 'a\.weight'.*Targets\(exclude=\.\.\.\)"):
        make_ranking_groups(layers(a=3, b=300), 0.99, Uniform())
    with pytest.raises(ValueError, match=r"leaves 1 weights for 'a\.weight', 'b\.weight'"):
        make_ranking_groups(layers(a=50, b=50), 0.99, None)


def test_a_glob_that_empties_its_layer() -> None:
    with pytest.raises(ValueError, match=r"leaves 0 weights for 'a\.weight'"):
        make_ranking_groups(layers(a=10, b=10), {"a": 0.96}, None)


def test_a_ranking_group_keeps_at_least_a_unit_of_each_layer() -> None:
    both = layers(a=12, b=20)
    assert make_ranking_groups(both, 0.5, unit_size=lambda layer: 4) == [RankingGroup((0, 1), 16, 32)]
    assert make_ranking_groups(both, 0.75, unit_size=lambda layer: 4) == [RankingGroup((0, 1), 24, 32)]
    with pytest.raises(ValueError, match=r"'a\.weight', 'b\.weight'"):
        make_ranking_groups(both, 0.82, unit_size=lambda layer: 4)


@given(
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=3),
    sparsity=st.floats(0, 0.99),
    pattern=st.sampled_from([Block((1, 3)), Block((2, 3)), Unstructured()]),
    distribution=st.sampled_from([None, Uniform(), ERK()]),
    seed=st.integers(0, 20),
)
@settings(max_examples=80, deadline=None)
def test_whatever_is_accepted_empties_no_layer(
    shapes: list[tuple[int, int]], sparsity: float, pattern: WeightPattern, distribution: Distribution | None, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randint(0, 3, (2 * rows, 3 * columns), generator=generator).float() for rows, columns in shapes]
    members = [Layer(f"{i}.weight", nn.Parameter(weight)) for i, weight in enumerate(weights)]
    try:
        groups = make_ranking_groups(members, sparsity, distribution, unit_size=pattern.unit_size)
    except ValueError:
        return
    for group in groups:
        chosen = [members[i] for i in group.layers]
        masks = pattern.choose(
            chosen, lambda layers: torch.stack([layer.weight.abs() for layer in layers]), group.num_pruned
        )
        assert all(mask.any() for mask in masks)
        pruned = sum(int((~mask).sum()) for mask in masks)
        assert abs(pruned - group.num_pruned) <= max(map(pattern.unit_size, chosen)) / 2
