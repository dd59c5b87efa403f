from __future__ import annotations

import copy
import json

import pytest
import torch
from rich.console import Console
from torch import nn

from lightning_compress.reporting.sparsity import SPARSITY_NOTE, Count, report


def make() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))
    with torch.no_grad():
        net[0].weight[:2] = 0.0
        net[0].bias.zero_()
        net[3].weight[0, :5] = 0.0
        net[3].weight[1, 0] = -0.0
    return net


def test_exact_integers() -> None:
    found = report(make())
    assert found.layers == (Count("0.weight", 72, 36), Count("3.weight", 48, 6))
    assert found.weights == Count("all weights", 120, 42)
    # Conv bias (4 zeros), norm (weight 4, bias 4, all zeros) and linear bias (3) come on top.
    assert found.parameters == Count("all parameters", 120 + 4 + 8 + 3, 42 + 4 + 4)
    assert found.layers[0].sparsity == 0.5
    assert found.weights.sparsity == 42 / 120


def test_shared_tensors_count_once() -> None:
    net = nn.ModuleDict({"embedding": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False)})
    net["head"].weight = net["embedding"].weight
    with torch.no_grad():
        net["head"].weight[0] = 0.0
    found = report(net)
    assert found.layers == (Count("embedding.weight", 20, 4),)
    assert found.parameters == Count("all parameters", 20, 4)


def test_a_model_without_weights() -> None:
    found = report(nn.ReLU())
    assert found.layers == ()
    assert found.weights.sparsity == 0.0
    assert "all parameters" in str(found)


def test_nan_is_not_a_zero() -> None:
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[torch.nan, 0.0]])
    assert report(layer).weights.num_zeros == 1


def test_the_model_is_left_bit_identical() -> None:
    net = make().train()
    net[0].weight.grad = torch.ones_like(net[0].weight)
    before = copy.deepcopy(net)
    parameters, random = list(map(id, net.parameters())), torch.get_rng_state()
    report(net)
    assert torch.equal(torch.get_rng_state(), random)
    assert list(map(id, net.parameters())) == parameters
    assert all(m.training for m in net.modules())
    for name, value in net.state_dict().items():
        assert value.flatten().view(torch.uint8).equal(before.state_dict()[name].flatten().view(torch.uint8)), name
    assert (net[0].weight.grad == 1).all()


def test_frozen_parameters_count() -> None:
    net = make().requires_grad_(False)
    assert report(net).weights.num_zeros == 42


def test_the_table() -> None:
    lines = str(report(make())).splitlines()
    cells = [[cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")] for line in lines]
    assert ["layer", "weights", "zeros", "sparsity"] in cells
    assert ["0.weight", "72", "36", "50.00%"] in cells
    assert ["3.weight", "48", "6", "12.50%"] in cells
    assert ["all weights", "120", "42", "35.00%"] in cells
    assert ["all parameters", "135", "50", "37.04%"] in cells


def test_thousands_are_marked_and_no_color_codes_are_in_the_text() -> None:
    text = str(report(nn.Linear(1000, 30)))
    assert "30,000" in text
    assert "\x1b" not in text


def test_a_note_says_that_sparsity_alone_gains_nothing() -> None:
    assert " ".join(str(report(make())).split()).endswith(SPARSITY_NOTE)
    assert SPARSITY_NOTE not in " ".join(str(report(nn.Linear(2, 2))).split())


@pytest.mark.parametrize("width", [60, 100, 200])
def test_long_names_are_not_cut(width: int) -> None:
    name = "_".join(f"block{i}" for i in range(14))
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(report(nn.ModuleDict({name: nn.Linear(2, 2)})))
    text = capture.get()
    assert "…" not in text
    names = "".join(line.strip("│").split("│")[0].strip() for line in text.splitlines() if line.startswith("│"))
    assert f"{name}.weight" in names


def test_json() -> None:
    data = json.loads(report(make()).to_json())
    assert data["weights"] == {"name": "all weights", "num_weights": 120, "num_zeros": 42}
    assert [layer["name"] for layer in data["layers"]] == ["0.weight", "3.weight"]
