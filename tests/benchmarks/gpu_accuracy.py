"""Accuracy of compressed CIFAR ResNets over longer budgets, beside figures of the literature.

All runs begin with the trained weights and end with the test images: SGD with momentum 0.9, weight decay 1e-4, batch
128, shifts of up to 4 pixels and mirror images, all 50,000 training images; learning rates fall to 0 along a cosine per
step. ``rewound`` prunes single weights in rounds of equal length, each from the first learning rate (Renda et al.
2020), by equal shares of what is left; the first round trains the dense network. ``filters`` removes channels before
the first step. ``qat`` learns the scales (LSQ), with 8 bits in the first and the last layer; its accuracy is simulated.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cifar10 import accuracy, sgd, trainer
from cifar10_channels import IMAGE, classifier, dense, ours
from cifar10_quantization import callback
from lightning.pytorch import seed_everything
from peers import macs

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule

RENDA = "Renda et al. 2020, arXiv:2003.02389"
APOT = "APoT, Li et al. 2020, arXiv:1909.13144"
DEPGRAPH = "DepGraph, Fang et al. 2023, arXiv:2301.12900"
CHIP = "CHIP, Sui et al. 2021, arXiv:2110.13981"


@dataclass(frozen=True)
class Anchor:
    """A published accuracy in percent, that of its dense network where it is given, and where both stand."""

    accuracy: float
    source: str
    dense: float | None = None


@dataclass(frozen=True)
class Budget:
    """What all runs share.

    Attributes:
        data: Folder of the images.
        weights: Folder with ``cifar10_resnet20.safetensors`` and ``cifar10_resnet56.safetensors``.
        epochs: Epochs of a run.
        rounds: Rounds of a rewound run, which divide its epochs.
        workers: Worker processes that load images.
        seed: Seed of the run.
    """

    data: str
    weights: str
    epochs: int
    rounds: int
    workers: int
    seed: int = 0

    def args(self, network: str, **options: Any) -> argparse.Namespace:
        """The options of the benchmarks of two epochs."""
        weights = Path(self.weights) / f"cifar10_{network}.safetensors"
        shared = {"root": self.data, "weights": str(weights), "epochs": self.epochs, "learning_rate": 0.02}
        fixed = {"held_out": 0, "compile": False, "network": f"{network}_cifar", "score": "L2"}
        return argparse.Namespace(**{**shared, **fixed, **options})

    def images(self) -> CIFAR10DataModule:
        return CIFAR10DataModule(self.data, val_size=0, num_workers=self.workers)


class InRounds(lc.ClassificationModule):
    """Trains with a learning rate that falls to zero once in each of some rounds, if it is rewound between them."""

    num_rounds = 1

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        steps = max(int(self.trainer.estimated_stepping_batches) // self.num_rounds, 1)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def rewound(budget: Budget, network: str, sparsity: float) -> dict[str, Any]:
    args = budget.args(network, learning_rate=0.1)
    module = InRounds(args.network, 10, optimizer=sgd(args.learning_rate), checkpoint=args.weights)
    module.num_rounds = budget.rounds
    share = 1 / budget.rounds
    schedule = lc.Schedule(begin=0.0, end=1 - share, every=share, curve="exponential")
    pruning = lc.Pruning(sparsity, schedule=schedule, rewind=lc.RewindLearningRate(0))
    data = budget.images()
    trainer(budget.epochs, pruning).fit(module, datamodule=data)
    return {"accuracy": accuracy(module, data, args), "sparsity": lc.report(module).weights.sparsity}


def filters(budget: Budget, network: str, times: float) -> dict[str, Any]:
    args = budget.args(network, times=times)
    data = budget.images()
    small = ours(data, args)
    fewer = macs(dense(args), IMAGE) / macs(small, IMAGE)
    return {"accuracy": accuracy(classifier(small, args), data, args), "times_fewer_macs": fewer}


def qat(budget: Budget, network: str, bits: int) -> dict[str, Any]:
    args = budget.args(network, freeze_observers=0.9, freeze_batch_norm=0.9)
    module = classifier(args.network, args, args.weights)
    data = budget.images()
    trainer(budget.epochs, callback(f"W{bits}A{bits}", args)).fit(module, datamodule=data)
    return {"accuracy": accuracy(module, data, args), "bits": bits}


Run = tuple[Callable[..., dict[str, Any]], str, float, tuple[Anchor, ...]]
RUNS: dict[str, Run] = {
    "rewound_79": (rewound, "resnet20", 0.79, (Anchor(91.75, RENDA, 91.71),)),
    "rewound_89.3": (rewound, "resnet20", 0.893, (Anchor(90.91, RENDA, 91.71),)),
    "qat_4": (qat, "resnet20", 4, (Anchor(92.45, APOT, 92.96),)),
    "qat_3": (qat, "resnet20", 3, (Anchor(92.49, APOT, 92.96),)),
    "qat_2": (qat, "resnet20", 2, (Anchor(90.96, APOT, 92.96),)),
    "rewound_89.3_deep": (rewound, "resnet56", 0.893, (Anchor(93.56, RENDA, 93.46),)),
    "rewound_94.5_deep": (rewound, "resnet56", 0.945, (Anchor(92.88, RENDA, 93.46),)),
    "rewound_97.7_deep": (rewound, "resnet56", 0.977, (Anchor(91.15, RENDA, 93.46),)),
    "filters_2.13_deep": (filters, "resnet56", 2.13, (Anchor(93.77, DEPGRAPH), Anchor(94.16, CHIP))),
    "filters_2.57_deep": (filters, "resnet56", 2.57, (Anchor(93.64, DEPGRAPH),)),
}


def measurements(budget: Budget) -> dict[str, Callable[[], dict[str, Any]]]:
    """One for each run."""
    return {
        f"accuracy/{network}/{name}": lambda run=(run, network, amount, anchors): measure(budget, *run)
        for name, (run, network, amount, anchors) in RUNS.items()
    }


def measure(
    budget: Budget, run: Callable[..., dict[str, Any]], network: str, amount: float, anchors: tuple[Anchor, ...]
) -> dict[str, Any]:
    """Accuracy in percent, beside those of the trained weights and of the literature."""
    seed_everything(budget.seed, verbose=False)
    args = budget.args(network)
    given = accuracy(classifier(args.network, args, args.weights), budget.images(), args)
    begin = time.perf_counter()
    result = run(budget, network, amount)
    seconds = time.perf_counter() - begin
    literature = [{"accuracy": a.accuracy, "dense": a.dense, "source": a.source} for a in anchors]
    common = {"epochs": budget.epochs, "seed": budget.seed, "seconds_per_epoch": seconds / budget.epochs}
    return {**result, "dense": given, **common, "literature": literature}
