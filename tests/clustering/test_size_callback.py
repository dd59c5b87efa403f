"""Fits that end with a packed file of a given size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.clustering.grid_assignment import assign_levels, free_weights
from lightning_compress.clustering.step_search import QuantizedWeight
from lightning_compress.constraints.assignment import Assignment
from lightning_compress.constraints.layer import Layer
from tests.fits import make_trainer
from tests.packing.samples import bits

SCHEDULE = lc.Schedule(begin=0.0, end=0.5, every=4)


class Task(LightningModule):
    """Classify noise."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
        )  # fmt: skip

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def fit(*callbacks: Callback, seed: int = 0) -> Task:
    torch.manual_seed(seed)
    task = Task()
    data = TensorDataset(torch.randn(64, 3, 8, 8), torch.randint(10, (64,)))
    make_trainer(*callbacks, max_epochs=2).fit(task, DataLoader(data, batch_size=8))
    return task


@pytest.mark.parametrize("half", [(), ("codebooks", "norms")])
def test_the_size_is_met_within_a_hundredth(half: tuple[str, ...], tmp_path: Path) -> None:
    budget = lc.SizeBudget("4kB", half=half, schedule=SCHEDULE, targets=lc.Targets(module="network"))
    task = fit(budget)
    file = lc.save_packed(task.network, tmp_path / "file", half=half)
    assert budget.reached
    assert 3960 <= file.num_bytes <= 4000
    assert file.num_bytes == budget.num_bytes
    if not half:
        loaded = lc.load_packed(file.path, into=Task().network).state_dict()
        assert {n: bits(t) for n, t in loaded.items()} == {n: bits(t) for n, t in task.network.state_dict().items()}


def test_levels_are_trained_each_by_itself() -> None:
    values = fit(lc.SizeBudget("5kB", schedule=SCHEDULE)).network[3].weight.unique()
    steps = values.diff()
    assert 3 < len(values) < 100
    assert steps.max() - steps.min() > 1e-5
    assert 0.0 in values


def test_masked_weights_stay_zero() -> None:
    pruning = lc.Pruning(0.8, schedule=lc.Schedule(begin=0.0, end=0.3, every=2))
    task = fit(pruning, lc.SizeBudget("3kB", schedule=SCHEDULE))
    assert lc.report(task).weights.sparsity >= 0.8


def test_few_bytes_are_refused_with_the_least_number() -> None:
    with pytest.raises(ValueError, match=r"The file takes \d+ bytes with every selected weight at zero, and 900 are"):
        fit(lc.SizeBudget(900, schedule=SCHEDULE))


def test_pruning_comes_first() -> None:
    with pytest.raises(ValueError, match="SizeBudget precedes a pruning callback"):
        fit(lc.SizeBudget("4kB"), lc.Pruning(0.5))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": "4 kb"}, "is not a size in bytes"),
        ({"size": "4kB", "half": ("weights",)}, "'weights' is not supported"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lc.SizeBudget(**arguments)


def test_levels_and_their_members() -> None:
    quantized = QuantizedWeight(torch.tensor([[0.0, 2.0, -3.0], [2.0, 0.0, 5.0]]).double(), 0.5)
    assignment, values = assign_levels(quantized, None, Layer("fc.weight", nn.Parameter(torch.zeros(2, 3))))
    assert values.tolist() == [0.0, -1.5, 1.0, 2.5]
    assert values[assignment.index].view(2, 3).tolist() == [[0.0, 1.0, -1.5], [1.0, 0.0, 2.5]]


def test_the_smallest_weights_stay_free() -> None:
    layer = Layer("fc.weight", nn.Parameter(torch.tensor([3.0, -1.0, 0.5, 2.0, -0.5, 0.0])))
    zeros = torch.tensor([False] * 5 + [True])
    free = free_weights(layer, None, zeros, 0.6)
    assert free is not None
    assert free.tolist() == [False, False, True, False, True, False]
    later = free_weights(layer, Assignment(torch.zeros(6).int(), 1, free=free), zeros, 0.8)
    assert later is not None
    assert later.tolist() == [False, False, True, False, False, False]
    assert free_weights(layer, None, zeros, 1.0) is None
    assert free_weights(layer, Assignment(torch.zeros(6).int(), 1), zeros, 0.5) is None
