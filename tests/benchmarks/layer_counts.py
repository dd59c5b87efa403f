"""Cost of updates and of steps for many small layers, over that for few layers with as many weights.

Prints CPU time in milliseconds, the smallest of several repetitions: of the updates of a fit without the first, and of
a step between updates, with the plain step beside it.

    python tests/benchmarks/layer_counts.py
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from tests.cases import trainer

NUM_STEPS = 12
# Updates after steps 1 to 4; the steps behind them are measured without one.
SCHEDULE = lc.Schedule(begin=1, end=4, every=1)
TECHNIQUES: dict[str, Callable[[], list[Any]]] = {
    "plain": list,
    "pruning": lambda: [lc.Pruning(0.5, schedule=SCHEDULE)],
    "clustering": lambda: [lc.WeightClustering(4, schedule=SCHEDULE)],
    "pruning and clustering": lambda: [
        lc.Pruning(0.5, schedule=lc.Schedule(begin=1, end=2, every=1)),
        lc.WeightClustering(4, schedule=lc.Schedule(begin=2, end=4, every=1)),
    ],
}


class Chain(LightningModule):
    """Square linear layers, one after the other."""

    def __init__(self, num_layers: int, size: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(num_layers))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        (x,) = batch
        for layer in self.layers:
            x = x + 0.01 * layer(x)
        return x.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Clock(Callback):
    """CPU time of each batch, and of each update in it."""

    def __init__(self, techniques: list[Any]) -> None:
        self.batches: list[float] = []
        self.updates: list[float] = []
        for technique in techniques:
            technique.update = self.timed(technique, technique.update)

    def timed(self, technique: Any, update: Callable[..., None]) -> Callable[..., None]:
        def timed_update(*args: Any) -> None:
            changes, start = technique.num_changes, time.process_time()
            update(*args)
            if technique.num_changes > changes:
                self.updates.append(1e3 * (time.process_time() - start))

        return timed_update

    def on_train_batch_start(self, *args: Any) -> None:
        self.start = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.batches.append(1e3 * (time.process_time() - self.start))


def measure(name: str, num_layers: int, size: int, repetitions: int) -> tuple[float, float]:
    """Milliseconds of all updates but the first, and of a step without one."""
    updates, steps = [], []
    for _ in range(repetitions):
        techniques = TECHNIQUES[name]()
        clock = Clock(techniques)
        data = DataLoader(TensorDataset(torch.randn(2 * NUM_STEPS, size)), batch_size=2)
        run = trainer([clock, *techniques], max_epochs=1)
        run.callbacks.sort(key=lambda callback: callback is not clock)  # it ends before the others begin to end
        run.fit(Chain(num_layers, size), data)
        updates.append(sum(clock.updates[1:]))  # the first allocates
        steps += clock.batches[5:]
    return min(updates, default=0.0), min(steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=5000, help="number of 4x4 layers")
    parser.add_argument("--repetitions", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    num_few, size = 50, round((16 * options.layers / 50) ** 0.5)
    plain = {}
    for name in TECHNIQUES:
        few = measure(name, num_few, size, options.repetitions)
        many = measure(name, options.layers, 4, options.repetitions)
        plain[name] = few, many
        ratio = f"{many[0] / few[0]:.2f}" if few[0] else "-"
        print(
            f"{name:22s} updates: {num_few} layers of {size}x{size} {few[0]:.1f}, {options.layers} of 4x4 {many[0]:.1f}"
            f" ({ratio} times); step: {few[1]:.1f} ({few[1] / plain['plain'][0][1]:.2f} of the plain one), "
            f"{many[1]:.1f} ({many[1] / plain['plain'][1][1]:.2f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
