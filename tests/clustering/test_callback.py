"""When a WeightClustering clusters beside other techniques, and along which dimensions."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback
from torch import Tensor, nn

import lightning_compress as lc
from tests.cases import Loader, Net, masks_of, num_masked, trainer


class Record(Callback):
    """After each step: whether weights are clustered, the number of masked weights, and weights that are zero."""

    def __init__(self) -> None:
        self.clustered: list[bool] = []
        self.masked: list[int] = []
        self.zeros: list[int] = []
        self.num_values: list[int] = []

    def on_train_batch_end(self, run: Any, model: Any, *args: Any) -> None:
        clustering = next(callback for callback in run.callbacks if isinstance(callback, lc.WeightClustering))
        weights = [model.get_parameter(name) for name in masks_of(run)]
        self.clustered.append(any(assignment is not None for assignment in clustering.constraint.assignments))
        self.masked.append(num_masked(masks_of(run)))
        self.zeros.append(sum(int((weight == 0).sum()) for weight in weights))
        self.num_values.append(max(len(weight.unique()) for weight in weights))


def test_clustering_waits_for_the_final_sparsity() -> None:
    record = Record()
    pruning = lc.Pruning(0.7, schedule=lc.Schedule(begin=1, end=6, every=1))
    clustering = lc.WeightClustering(4, schedule=lc.Schedule(begin=0.0, curve="one_shot"))
    trainer([pruning, clustering, record]).fit(Net(), Loader())
    assert record.masked[4] < record.masked[5] == 269
    assert record.clustered == [False] * 5 + [True] * 5
    assert record.num_values[5:] == [4] * 5


def test_weights_are_clustered_anew_when_masks_change() -> None:
    record = Record()
    pruning = lc.Pruning(0.7, growth=lc.RigL(), schedule=lc.Schedule(begin=0.0, end=8, every=2, curve="one_shot"))
    clustering = lc.WeightClustering(4, schedule=lc.Schedule(begin=0.0, curve="one_shot"))
    trainer([pruning, clustering, record]).fit(Net(), Loader())
    assert pruning.num_changes >= 4
    assert record.masked == [269] * 10
    # Weights that grow, after every second step, begin at zero; they are no members of the cluster of zeros any more.
    assert record.zeros[0::2] == [269] * 5
    assert max(record.num_values) <= 4


class Transposed(Net):
    """With a transposed convolution, which stores its input channels first."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(1)
            self.up = nn.ConvTranspose2d(4, 6, 3, padding=1)
            self.down = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.down(self.up(x)))


def test_channels_of_transposed_convolutions_have_their_codebooks() -> None:
    model = Transposed()
    clustering = lc.WeightClustering(
        2, granularity="channel", schedule=lc.Schedule(begin=0.0, end=4, every=1), targets=lc.Targets(include=("up",))
    )
    trainer([clustering]).fit(model, Loader())
    assert model.up.weight.shape == (4, 6, 3, 3)
    assert [len(model.up.weight[:, channel].unique()) for channel in range(6)] == [2] * 6
    assert len(model.up.weight.unique()) == 12


def test_groups_of_transposed_convolutions_lie_along_their_inputs() -> None:
    model = Transposed()
    schedule = lc.Schedule(begin=0.0, end=4, every=1)
    trainer([lc.Pruning(0.5, pattern=lc.NM(2, 4), schedule=schedule, targets=lc.Targets(include=("up",)))]).fit(
        model, Loader()
    )
    assert ((model.up.weight == 0).sum(dim=0) == 2).all()
