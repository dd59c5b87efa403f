"""Cost of a training step under a constraint over the plain step: ResNet-20, 32x32 images, batch 128, SGD.

    python tests/benchmarks/step_cost.py [--rounds 15] [--steps 12] [--accelerator cpu|gpu] [--arms masked dkm]

All arms are real fits of Lightning's Trainer, run in turns; a step is timed from one batch start to the next.
``masked`` has a fixed mask of 90 %; ``masking`` finds a new one at every step, a hundred times more often than by
default, to show what an update costs. ``clustered`` has 16 values a layer, whose weights stay in their clusters;
``dkm`` is in the soft phase of differentiable k-means with 16.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import timm
import torch
from interleaved import medians, ratio
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
import lightning_compress.models.networks  # registers resnet20_cifar with timm


class Plain(LightningModule):
    """A LightningModule that knows nothing of compression."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = timm.create_model("resnet20_cifar", num_classes=10) if net is None else net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)


class Stopwatch(Callback):
    """Times from batch start to batch start."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *args: object) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.marks.append(time.perf_counter())

    @property
    def times(self) -> list[float]:
        """Seconds of every step but the first, which allocates."""
        return [b - a for a, b in zip(self.marks[1:], self.marks[2:], strict=False)]


def quiet_trainer(callbacks: list[Callback], accelerator: str, precision: str = "32-true") -> Trainer:
    """A Trainer of one epoch that prints and writes nothing."""
    return Trainer(
        max_epochs=1,
        accelerator=accelerator,
        devices=1,
        precision=precision,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def fit(
    module: LightningModule, callbacks: list[Callback], data: Any, accelerator: str, precision: str = "32-true"
) -> list[float]:
    """Step times of one fit."""
    watch = Stopwatch()
    quiet_trainer([*callbacks, watch], accelerator, precision).fit(module, data)
    return watch.times


def seeded() -> Plain:
    """A module that is the same in every round."""
    torch.manual_seed(0)
    return Plain()


STEADY = lc.Schedule(begin=0.0, curve="one_shot")
ARMS: dict[str, Callable[[], list[Callback]]] = {
    "plain": list,
    "masked": lambda: [lc.Pruning(0.9, schedule=STEADY)],
    "masking": lambda: [lc.Pruning(0.9, schedule=lc.Schedule(begin=0.0, end=1.0, every=1))],
    "clustered": lambda: [lc.WeightClustering(16, schedule=STEADY)],
    "dkm": lambda: [lc.WeightClustering(16, method="dkm", schedule=lc.Schedule(begin=0.0, end=1.0, every=0.5))],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    images = torch.randn(128 * (args.steps + 2), 3, 32, 32)
    data = DataLoader(TensorDataset(images, torch.randint(0, 10, (len(images),))), batch_size=128)
    arms = {name: ARMS[name] for name in dict.fromkeys(["plain", *args.arms])}
    results = medians(
        {name: lambda make=make: fit(seeded(), make(), data, args.accelerator) for name, make in arms.items()},
        rounds=args.rounds,
    )
    print(f"torch {torch.__version__}, {args.accelerator}, {torch.get_num_threads()} threads")
    print(f"plain step: {1e3 * sorted(results['plain'])[len(results['plain']) // 2]:.2f} ms")
    for name in results:
        if name != "plain":
            print(f"{name} step / plain step: {ratio(results, name, 'plain')}")


if __name__ == "__main__":
    main()
