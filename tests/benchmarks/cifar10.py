"""What the benchmarks of accuracy on CIFAR-10 share: their options, the optimizer, a quiet Trainer, runs over seeds."""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from torch import nn

import lightning_compress as lc


def options(
    description: str | None, *, seeds: Sequence[int] = (0, 1, 2), from_scratch: bool = False
) -> argparse.ArgumentParser:
    """The options that all have, to which a benchmark adds its own."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the images")
    parser.add_argument("--weights", required=not from_scratch, help="trained weights to begin with")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--held-out", type=int, default=0, help="choose by so many training images")
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks, which is faster on a CPU")
    return parser


def sgd(learning_rate: float) -> Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]:
    """The optimizer of all runs."""
    return lambda params: torch.optim.SGD(params, lr=learning_rate, momentum=0.9, weight_decay=1e-4)


def resnet20(args: argparse.Namespace) -> lc.ClassificationModule:
    """The trained network that is compressed."""
    optimizer = sgd(args.learning_rate)
    module = lc.ClassificationModule("resnet20_cifar", 10, optimizer=optimizer, checkpoint=args.weights)
    if args.compile:
        module.model.compile()
    return module


def distilled(module: lc.ClassificationModule, args: argparse.Namespace) -> LightningModule:
    """With --distilled, the module as the student of its own dense weights; else the module."""
    if not args.distilled:
        return module
    teacher = lc.Teacher("resnet20_cifar", checkpoint=args.weights, compile=args.compile)
    return lc.DistillationModule(module, teacher, losses={"kd": lc.KD(temperature=4.0, weight=0.9)}, task_weight=0.1)


def trainer(epochs: int, *callbacks: Callback, max_steps: int = -1) -> Trainer:
    """A Trainer that prints and writes nothing."""
    return Trainer(
        max_epochs=epochs,
        max_steps=max_steps,
        accelerator="auto",
        devices=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def accuracy(module: LightningModule, data: LightningDataModule, args: argparse.Namespace) -> float:
    """Accuracy in percent on the test images, or on the training images that were held out."""
    runs = trainer(0)
    evaluate, key = (runs.validate, "val/acc") if args.held_out else (runs.test, "test/acc")
    return 100 * evaluate(module, datamodule=data, verbose=False)[0][key]


def over_seeds(name: str, run: Callable[[], tuple[float, str]], seeds: Sequence[int]) -> None:
    """Prints the accuracy that a run has with each seed, what it says beside it, and mean and deviation of several."""
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    results = []
    for seed in seeds:
        seed_everything(seed, verbose=False)
        start = time.perf_counter()
        result, said = run()
        results.append(result)
        print(f"{name} seed {seed}: {result:.2f} % ({said}{time.perf_counter() - start:.0f} s)", flush=True)
    if len(results) > 1:
        mean, spread = statistics.mean(results), statistics.stdev(results)
        print(f"{name}: mean {mean:.2f} %, standard deviation {spread:.2f}, seeds {list(seeds)}")
