from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_compress.constraints.layer import Layer
from lightning_compress.pruning.patterns import NM, Block, Unstructured, WeightPattern
from lightning_compress.pruning.structured_patterns import Channels


def linear(values: list[list[float]], name: str = "fc.weight") -> Layer:
    return Layer(name, nn.Parameter(torch.tensor(values)))


def random_layer(*shape: int, input_dim: int = 1, name: str = "conv.weight", seed: int = 0) -> Layer:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return Layer(name, nn.Parameter(values), input_dim=input_dim)


def magnitude(layers: Sequence[Layer]) -> Tensor:
    return torch.stack([layer.weight.abs() for layer in layers])


def choose(pattern: WeightPattern, layers: list[Layer], num_pruned: int) -> list[list]:
    return [mask.int().tolist() for mask in pattern.choose(layers, magnitude, num_pruned)]


def test_unstructured() -> None:
    layer = linear([[0.1, 0.9, -0.2, 0.5]])
    assert choose(Unstructured(), [layer], 2) == [[[0, 1, 0, 1]]]


def test_unstructured_ranks_layers_together() -> None:
    layers = [linear([[0.1, 0.9], [-0.2, 0.5]]), linear([[0.3, -0.05]])]
    assert choose(Unstructured(), layers, 3) == [[[0, 1], [0, 1]], [[1, 0]]]


def test_unstructured_keeps_the_shape_of_a_weight_that_is_not_contiguous() -> None:
    layer = Layer("conv.weight", nn.Parameter(torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)))
    (mask,) = Unstructured().choose([layer], magnitude, 24)
    assert mask.shape == (4, 3, 2, 2)
    assert layer.weight.abs()[mask].min() >= layer.weight.abs()[~mask].max()
    assert (~mask).sum() == 24


def test_block_by_mean() -> None:
    layer = linear([[1.0, 1.0, 0.0, 9.0], [1.0, 1.0, 0.0, 0.0]])
    assert choose(Block((2, 2)), [layer], 4) == [[[0, 0, 1, 1], [0, 0, 1, 1]]]
    assert choose(Block((1, 4)), [layer], 4) == [[[1, 1, 1, 1], [0, 0, 0, 0]]]
    assert choose(Block((2, 1)), [layer], 2) == [[[1, 1, 0, 1], [1, 1, 0, 1]]]


def test_block_of_a_convolution_is_cut_from_output_channels_by_the_rest() -> None:
    layer = random_layer(4, 3, 2, 2)
    (mask,) = Block((2, 4)).choose([layer], magnitude, 24)
    blocks = mask.flatten(1).unflatten(1, (3, 4)).unflatten(0, (2, 2)).float()
    assert set(blocks.mean(dim=(1, 3)).flatten().tolist()) == {0.0, 1.0}
    assert (~mask).sum() == 24
    means = layer.weight.abs().flatten(1).unflatten(1, (3, 4)).unflatten(0, (2, 2)).mean(dim=(1, 3))
    kept = blocks.mean(dim=(1, 3)).bool()
    assert means[kept].min() > means[~kept].max()


def test_blocks_that_do_not_fit_are_named_with_the_way_out() -> None:
    layers = [random_layer(4, 3, 3, 3, name="net.stem.weight"), random_layer(6, 4, name="net.head.weight")]
    assert Block((2, 3)).misfits(layers) == (
        "'net.head.weight' cannot be cut into blocks of 2x3; leave it out: Targets(exclude=('net.head',))."
    )
    assert Block((4, 9)).misfits(layers[:1]) == ""


@pytest.mark.parametrize("shape", [(0, 4), (4,), (2, 2, 2), (-1, 4)])
def test_block_needs_two_sides(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="two sides"):
        Block(shape)


def test_channels_need_a_multiple_of_at_least_one() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Channels(round_to=0)


def test_channels_are_a_part_of_something_known() -> None:
    with pytest.raises(ValueError, match="must be 'channels', 'parameters', 'macs' or 'latency'"):
        Channels(of="flops")


def test_two_of_four_along_the_input_dimension() -> None:
    layer = linear([[4.0, -1.0, 3.0, 2.0, 0.0, 0.1, 0.2, 0.3]])
    assert choose(NM(2, 4), [layer], 4) == [[[1, 0, 1, 0, 0, 0, 1, 1]]]


def test_two_of_four_of_a_convolution_runs_over_input_channels() -> None:
    layer = random_layer(3, 8, 2, 2)
    (mask,) = NM(2, 4).choose([layer], magnitude, 48)
    assert (mask.unflatten(1, (2, 4)).sum(dim=2) == 2).all()


def test_two_of_four_of_a_transposed_convolution_runs_over_its_first_dimension() -> None:
    layer = random_layer(8, 3, 2, 2, input_dim=0)
    (mask,) = NM(2, 4).choose([layer], magnitude, 48)
    assert (mask.unflatten(0, (2, 4)).sum(dim=1) == 2).all()


@pytest.mark.parametrize(("num_pruned", "kept"), [(0, 4), (3, 4), (4, 3), (7, 3), (8, 2), (12, 2)])
def test_on_the_way_whole_steps_are_taken(num_pruned: int, kept: int) -> None:
    (mask,) = NM(2, 4).choose([random_layer(2, 8)], magnitude, num_pruned)
    assert (mask.unflatten(1, (2, 4)).sum(dim=2) == kept).all()


@given(n=st.integers(1, 7), m=st.integers(2, 8), seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_any_n_of_m_has_its_sparsity_exactly(n: int, m: int, seed: int) -> None:
    n = min(n, m - 1)
    layer = random_layer(5, 3 * m, seed=seed)
    pattern = NM(n, m)
    pattern.check_sparsity(1 - n / m)
    (mask,) = pattern.choose([layer], magnitude, round(layer.shape.numel() * (1 - n / m)))
    assert (mask.unflatten(1, (3, m)).sum(dim=2) == n).all()


def test_a_sparsity_that_the_pattern_cannot_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"0\.85.*NM\(2, 4\): its sparsity must be 0\.5"):
        NM(2, 4).check_sparsity(0.85)


@pytest.mark.parametrize(("n", "m"), [(0, 4), (4, 4), (5, 4), (-1, 2)])
def test_n_of_m_must_lie_between(n: int, m: int) -> None:
    with pytest.raises(ValueError, match="0 < n < m"):
        NM(n, m)


def test_input_dimensions_that_are_no_multiple_are_named() -> None:
    layers = [
        random_layer(8, 3, 3, 3, name="stem.weight"),
        random_layer(8, 8, name="fc.weight"),
        random_layer(6, 8, 2, 2, input_dim=0, name="up.weight"),
    ]
    assert NM(2, 4).misfits(layers) == (
        "'stem.weight', 'up.weight' has an input dimension that is not a multiple of 4; "
        "leave it out: Targets(exclude=('stem', 'up',))."
    )


@pytest.mark.parametrize("pattern", [Unstructured(), Block((2, 2)), NM(2, 4)])
def test_specifications_are_frozen_equal_and_hashable(pattern: WeightPattern) -> None:
    assert pattern == eval(repr(pattern))  # their repr is how users write them
    assert hash(pattern) == hash(eval(repr(pattern)))
    with pytest.raises(AttributeError):
        pattern.anything = 1
