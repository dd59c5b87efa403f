from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc

CLASSES = 4
Batches = list[tuple[Tensor, Tensor]]


class Answers(nn.Module):
    """Reads the class from the first value of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot(x[:, 0].long(), CLASSES).float() * self.weight


class Student(LightningModule):
    """A network whose validation takes any batch."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(2, CLASSES)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class PerRank:
    """Validation batches of this rank."""

    def __init__(self, *batches: Batches) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(self.batches[dist.get_rank() if dist.is_initialized() else 0])


def batch(answers: list[int], labels: list[int], dtype: torch.dtype = torch.long) -> tuple[Tensor, Tensor]:
    """Images that the teacher answers so, and their labels."""
    return torch.tensor([[answer, 0.0] for answer in answers]), torch.tensor(labels, dtype=dtype)


def logged(val: Any, **options: Any) -> float | None:
    """The accuracy that a fit logs."""
    images, labels = batch([0, 1, 2, 3], [0, 1, 2, 3])
    quiet: dict[str, Any] = {
        "logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False,
    }  # fmt: skip
    run = Trainer(
        accelerator="cpu", max_steps=1, num_sanity_val_steps=0, use_distributed_sampler=False, **quiet, **options
    )
    run.fit(lc.DistillationModule(Student(), Answers()), DataLoader(TensorDataset(images, labels), 4), val)
    value = run.callback_metrics.get("teacher/val_acc")
    return None if value is None else float(value)


RIGHT, HALF, WRONG = batch([0, 1], [0, 1]), batch([0, 1], [0, 2]), batch([3, 0, 1], [2, 1, 0])
OTHER = batch([0, 1], [0, 1], torch.float)  # no classes


@pytest.mark.parametrize(
    ("batches", "expected"),
    [
        ([RIGHT], 1.0),
        ([HALF, RIGHT], 0.75),
        ([WRONG, RIGHT], 0.4),  # samples count, not batches
        ([batch([0, 1, 2, 3, 0], [0, 5, 6, 7, -100])], 0.2),  # classes that the teacher lacks
        ([RIGHT, OTHER], None),
        ([], None),
    ],
    ids=str,
)
def test_is_the_share_of_samples(batches: Batches, expected: float | None) -> None:
    found = logged(PerRank(batches))
    assert found == (None if expected is None else pytest.approx(expected, abs=1e-7))


def test_warns_below_twice_the_accuracy_of_chance(recwarn: pytest.WarningsRecorder) -> None:
    assert logged(PerRank([HALF])) == 0.5  # of 4 classes, exactly twice
    assert not [w for w in recwarn if "has an accuracy of" in str(w.message)]
    with pytest.warns(UserWarning, match="The teacher 'Answers' has an accuracy of 40.0% on the validation samples"):
        logged(PerRank([WRONG, RIGHT]))


@pytest.mark.parametrize(
    ("second", "expected"), [([WRONG, WRONG], 0.25), ([], 1.0)], ids=["both", "one has no batches"]
)
def test_is_that_of_all_ranks(second: Batches, expected: float) -> None:
    strategy = DDPStrategy(process_group_backend="gloo", start_method="spawn")
    assert logged(PerRank([RIGHT], second), devices=2, strategy=strategy) == expected
