from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_compress.constraints.layer import Layer
from lightning_compress.pruning.growth import SET, RigL


def test_the_number_of_dropped_weights_falls_to_zero_with_a_cosine() -> None:
    growth = RigL(fraction=0.3)
    assert [growth.num_dropped_and_grown(1000, done) for done in (0.0, 0.5, 1.0, 1.2)] == [300, 150, 0, 0]
    assert growth.num_dropped_and_grown(1000, 1 / 3) == 225


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, 2.0])
def test_a_fraction_lies_between_zero_and_one(fraction: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        SET(fraction=fraction)


def test_rigl_grows_where_the_gradient_is_large() -> None:
    layer = Layer("weight", nn.Parameter(torch.ones(1, 3)))
    gradient = torch.tensor([[0.5, -2.0, 1.0]])
    assert RigL().priority(layer, gradient, 0).tolist() == [[0.5, 2.0, 1.0]]
    assert RigL().needs_gradient
    assert gradient.tolist() == [[0.5, -2.0, 1.0]]


def test_set_grows_at_random_but_alike_everywhere() -> None:
    layer = Layer("weight", nn.Parameter(torch.ones(5, 5)))
    first = SET(seed=1).priority(layer, None, 7)
    torch.manual_seed(99)
    assert torch.equal(SET(seed=1).priority(layer, None, 7), first)
    assert not torch.equal(SET(seed=1).priority(layer, None, 8), first)
    assert not torch.equal(SET(seed=2).priority(layer, None, 7), first)
    assert not SET.needs_gradient
