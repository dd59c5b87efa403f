from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_compress.constraints.layer import Layer
from lightning_compress.pruning.distributions import Uniform
from lightning_compress.pruning.pools import Pool, make_pools


def layers(**sizes: int) -> list[Layer]:
    return [Layer(f"{n.replace('_', '.')}.weight", nn.Parameter(torch.ones(s, 1))) for n, s in sizes.items()]


def test_all_layers_together() -> None:
    assert make_pools(layers(a=10, b=25), 0.9, None) == [Pool((0, 1), 32, 35)]


def test_each_layer_by_itself() -> None:
    pools = make_pools(layers(a=10, b=20), 0.9, Uniform())
    assert pools == [Pool((0,), 9, 10), Pool((1,), 18, 20)]
    assert [pool.sparsity for pool in pools] == [0.9, 0.9]


def test_globs_make_pools_and_the_first_match_counts() -> None:
    pools = make_pools(layers(enc_0=10, enc_1=10, dec=10), {"enc.1": 0.5, "enc": 0.8}, None)
    assert pools == [Pool((1,), 5, 10), Pool((0,), 8, 10)]


def test_layers_without_a_match_stay_dense() -> None:
    assert make_pools(layers(a=10, b=10), {"a": 0.5}, None) == [Pool((0,), 5, 10)]


def test_globs_with_a_distribution() -> None:
    pools = make_pools(layers(enc_0=10, enc_1=20, dec=10), {"enc": 0.5, "dec": 0.1}, Uniform())
    assert pools == [Pool((0,), 5, 10), Pool((1,), 10, 20), Pool((2,), 1, 10)]


def test_a_glob_that_matches_nothing_is_named() -> None:
    with pytest.raises(ValueError, match=r"sparsity: 'decoder' matches no selected layer; they are 'a', 'b'"):
        make_pools(layers(a=10, b=10), {"a": 0.5, "decoder": 0.5}, None)


def test_a_layer_that_would_be_emptied_is_named() -> None:
    with pytest.raises(ValueError, match=r"leaves 0 weights for 'a.weight'.*Targets\(exclude=\.\.\.\)"):
        make_pools(layers(a=3, b=300), 0.99, Uniform())
    with pytest.raises(ValueError, match="leaves 1 weights for 'a.weight', 'b.weight'"):
        make_pools(layers(a=50, b=50), 0.99, None)


def test_a_glob_that_empties_its_layer() -> None:
    with pytest.raises(ValueError, match="leaves 0 weights for 'a.weight'"):
        make_pools(layers(a=10, b=10), {"a": 0.96}, None)
