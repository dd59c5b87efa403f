"""Weights on a uniform grid, so that a packed file has a given size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.clustering.layer_statistics import observe_layers
from lightning_compress.clustering.rate_distortion import WeightedErrors, quantize_weight
from lightning_compress.clustering.size_budget import parse_size
from lightning_compress.packing.symbol_costs import MAX_INTEGER, integer_costs
from tests.packing.samples import bits


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding=1, groups=4), nn.ReLU(),
        nn.Conv2d(32, 32, 3, padding="same"), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    ).eval()  # fmt: skip


def batches() -> list[Tensor]:
    return list(torch.randn(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("size", ["6kB", 3500, "9.5 kB"])
def test_the_size_is_met_within_a_hundredth(size: int | str, tmp_path: Path) -> None:
    small = lc.quantize_to_size(make(), batches(), size)
    file = lc.save_packed(small, tmp_path / "file")
    assert 0.99 * parse_size(size) <= file.num_bytes <= parse_size(size)
    loaded = lc.load_packed(file.path, into=make())
    assert {n: bits(t) for n, t in loaded.state_dict().items()} == {n: bits(t) for n, t in small.state_dict().items()}


def test_weights_are_multiples_of_one_step_and_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    net = make()
    before = {name: bits(tensor) for name, tensor in net.state_dict().items()}
    size = lc.save_packed(net, tmp_path / "file").num_bytes - 3000
    small = lc.quantize_to_size(net, batches(), size, targets=lc.Targets(include=("0", "9")))
    assert {name: bits(tensor) for name, tensor in net.state_dict().items()} == before
    assert all(parameter.grad is None for parameter in [*net.parameters(), *small.parameters()])
    changed = {name for name, tensor in small.state_dict().items() if bits(tensor) != before[name]}
    assert changed == {"0.weight", "9.weight"}
    values = small[0].weight.unique()
    step = values.diff().min()
    assert torch.allclose(values / step, (values / step).round(), atol=1e-3)


def test_halves_count_as_they_will_be_saved(tmp_path: Path) -> None:
    small = lc.quantize_to_size(make(), batches(), "5kB", half=("norms",))
    assert 4950 <= lc.save_packed(small, tmp_path / "file", half=("norms",)).num_bytes <= 5000


def test_a_size_below_that_of_the_other_tensors() -> None:
    with pytest.raises(
        ValueError, match=r"The file takes \d+ bytes with every selected weight at zero, and 500 are allowed"
    ):
        lc.quantize_to_size(make(), batches(), 500)


@pytest.mark.parametrize("size", ["60", "60 kb", "-1kB", "kB", 0, -5, True, "0kB", None])
def test_what_is_no_size(size: object) -> None:
    with pytest.raises(ValueError, match="is not a size in bytes; write for example '60kB'"):
        lc.quantize_to_size(make(), batches(), size)  # type: ignore[arg-type]


def test_no_batch() -> None:
    with pytest.raises(ValueError, match="there is no batch"):
        lc.quantize_to_size(make(), [], "6kB")


def test_compensation_halves_the_error_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(16, 48, generator=generator)
    inputs = torch.randn(500, 8, generator=generator) @ torch.randn(8, 48, generator=generator)
    inputs += 0.1 * torch.randn(500, 48, generator=generator)
    moments = (inputs.T @ inputs).double() / 500
    errors = WeightedErrors.of(moments, torch.ones(16, dtype=torch.float64))
    found = quantize_weight(weight, errors, step=0.5, rate=0.0).float() * 0.5
    rounded = (weight / 0.5).round() * 0.5
    assert ((found - weight) @ inputs.T).square().sum() < 0.5 * ((rounded - weight) @ inputs.T).square().sum()


def test_a_rate_saves_bits() -> None:
    weight = torch.randn(32, 32, 3, 3, generator=torch.Generator().manual_seed(0))
    errors = WeightedErrors.of(torch.eye(288, dtype=torch.float64), torch.ones(32, dtype=torch.float64))

    def num_bits(rate: float) -> float:
        integers = quantize_weight(weight, errors, step=0.5, rate=rate).flatten().numpy()
        contexts, costs = integer_costs(integers, tuple(weight.shape))
        return float(costs[contexts, integers.astype(int) + MAX_INTEGER].sum())

    assert num_bits(0.5) < 0.95 * num_bits(0.0)


def test_costs_are_those_of_the_file(tmp_path: Path) -> None:
    integers = (2 * torch.randn(64, 32, 3, 3, generator=torch.Generator().manual_seed(0))).round() + 0.0
    contexts, costs = integer_costs(integers.flatten().numpy(), tuple(integers.shape))
    expected = float(costs[contexts, integers.flatten().int().numpy() + MAX_INTEGER].sum()) / 8
    file = lc.save_packed({"weight": integers * 0.37}, tmp_path / "file")
    assert abs(file.tensors[0].num_bytes - expected) < 0.06 * expected


def test_statistics_are_those_of_the_layer() -> None:
    layer = nn.Linear(4, 3)
    inputs = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    (found,) = observe_layers(layer, [(layer, layer.weight)], [inputs[:20], inputs[20:]])
    assert torch.allclose(found.inputs.float(), inputs.T @ inputs / 50, atol=1e-5)
    assert torch.equal(found.gradients, torch.ones(3, dtype=torch.float64))  # squares of random signs
