"""Memory and communication of the techniques under FSDP2: formulas, and what two and four ranks really take.

Prints, for each technique and number of ranks, the bytes that a rank holds beside the fit, and the bytes of the tensors
that it passes to collectives in an update and in a step between updates; each measured, and by the formula below; then
the formulas for 70 billion weights on 64 ranks. A minute on two cores::

    python -m tests.distributed.costs
"""

from __future__ import annotations

import argparse
import gc
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import LambdaCallback
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.reporting.units import format_bytes
from tests.cases import trainer
from tests.distributed import jobs
from tests.distributed.pool import Pool

NUM_LAYERS, SIZE = 4, 256
NUM_CLUSTERS = 16
FIRST, LAST, NUM_STEPS = 2, 4, 8
SCHEDULE = lc.Schedule(begin=FIRST, end=LAST, every=1)
RANKS = (2, 4)
RADIX_BYTES = 2 * 65536 * 8  # two passes over float32 scores, a histogram of 16-bit digits in each


@dataclass(frozen=True)
class Network:
    """What costs depend on.

    Attributes:
        num_weights: Number of weights.
        num_layers: Number of layers that hold them.
        num_channels: Number of output channels of all layers.
        num_activations: Number of quantized activations.
    """

    num_weights: float
    num_layers: int
    num_channels: int
    num_activations: int


SQUARES = Network(NUM_LAYERS * SIZE**2, NUM_LAYERS, NUM_LAYERS * SIZE, NUM_LAYERS + 1)
# 80 blocks of 8,192 features, 28,672 hidden units and 8 heads of keys and values, as in Llama 3 (arXiv:2407.21783).
LARGE = Network(70e9, 80 * 7, 80 * (3 * 8192 + 2 * 1024 + 2 * 28672), 80 * 9)


@dataclass(frozen=True)
class Cost:
    """Bytes of one rank.

    Attributes:
        memory: Held between updates.
        update: In tensors that the rank passes to collectives in an update.
        step: The same in a step between updates.
    """

    memory: float
    update: float
    step: float


def pruning(network: Network, num_ranks: int) -> Cost:
    """One byte for each mask entry of the shard; the threshold takes two histograms, whatever the number of weights."""
    return Cost(network.num_weights / num_ranks, RADIX_BYTES, 0)


def clustering(network: Network, num_ranks: int) -> Cost:
    """Four bytes for each assignment of the shard.

    An update gathers weights, and with one byte each whether they are free, a layer at a time. A step adds numbers of
    each cluster over ranks: sums of the gradient in double precision, and first members of the weights.
    """
    shard = network.num_weights / num_ranks
    return Cost(4 * shard, (4 + 1) * shard, network.num_layers * NUM_CLUSTERS * (8 + 4))


def quantization(network: Network, num_ranks: int) -> Cost:
    """Scale and range of each output channel, on each rank; ranges of the activations in each step that observes.

    A change of the phase counts as an update, in which ranks compare a hash of eight bytes.
    """
    ranges = 2 * 4 * network.num_activations
    return Cost((4 + 2 * 4) * network.num_channels, ranges + 8, ranges)


FORMULAS: Mapping[str, Callable[[Network, int], Cost]] = {
    "pruning": pruning,
    "clustering": clustering,
    "quantization": quantization,
}
OBSERVING = lc.QATSchedule(fake_quantize=FIRST, freeze_observers=1.0)
CALLBACKS: Mapping[str, Callable[[], list[Any]]] = {
    "plain": list,
    "pruning": lambda: [lc.Pruning(0.5, schedule=SCHEDULE)],
    "clustering": lambda: [lc.WeightClustering(NUM_CLUSTERS, schedule=SCHEDULE)],
    "quantization": lambda: [
        lc.QuantizationAwareTraining(schedule=lc.QATSchedule(fake_quantize=FIRST, freeze_observers=1.0))
    ],
}


class Squares(LightningModule):
    """Square linear layers that are sharded one by one."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE, bias=False) for _ in range(NUM_LAYERS))

    def configure_model(self) -> None:
        for layer in self.layers:
            fully_shard(layer, mesh=self.device_mesh["data_parallel"])
        fully_shard(self, mesh=self.device_mesh["data_parallel"])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).relu()
        return x

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-3)


class Sent(TorchDispatchMode):
    """Counts the bytes of tensors that are passed to collectives."""

    def __init__(self) -> None:
        super().__init__()
        self.num_bytes = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = operation.__name__
        for start, position in _SENT.items():
            if operation.namespace in ("c10d", "_c10d_functional") and name.startswith(start):
                given = args[position]
                self.num_bytes += sum(t.nbytes for t in (given if isinstance(given, (list, tuple)) else [given]))
        return operation(*args, **(kwargs or {}))


_SENT = {
    "allreduce_": 0,
    "all_gather_into_tensor": 0,
    "allgather_": 1,
    "_allgather_base_": 1,
    "_reduce_scatter_base_": 1,
}
"""Collectives, and the position of what a rank sends among their arguments."""


class Bill:
    """Bytes that are sent in each batch, and those that tensors take in the end; by the first and the last callback."""

    def __init__(self) -> None:
        self.sent: list[int] = []
        self.held = 0

    @property
    def begin(self) -> Callback:
        return LambdaCallback(on_train_batch_start=lambda *args: self._begin())

    @property
    def end(self) -> Callback:
        return LambdaCallback(on_train_batch_end=lambda *args: self._end())

    def _begin(self) -> None:
        self.mode = Sent()
        self.mode.__enter__()

    def _end(self) -> None:
        self.mode.__exit__(None, None, None)
        self.sent.append(self.mode.num_bytes)
        if len(self.sent) == NUM_STEPS:
            gc.collect()
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _tensors()}
            self.held = sum(storages.values())


def _tensors() -> Iterator[Tensor]:
    for item in gc.get_objects():
        if type(item) in (Tensor, nn.Parameter) and item.device.type == "cpu":
            yield item


def fit(name: str) -> tuple[list[int], int]:
    """Bytes that this rank sends in each batch of a fit, and that it holds after the updates."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    bill, options = Bill(), jobs.placed("fsdp2")
    callbacks = [bill.begin, *CALLBACKS[name](), bill.end]
    data = DataLoader(TensorDataset(torch.randn(2 * NUM_STEPS, SIZE)), batch_size=2)
    trainer(callbacks, max_steps=NUM_STEPS, **options).fit(Squares(), data)
    return bill.sent, bill.held


def measure(pool: Pool) -> Iterator[tuple[str, Cost]]:
    """Yield the cost of each technique on the first rank, without that of the fit itself."""
    (plain, *_), held = pool(fit, "plain")[0]
    for name in FORMULAS:
        sent, memory = pool(fit, name)[0]
        # An update in the middle, with weights that are fixed already, and a step without a check that ranks agree.
        yield name, Cost(memory - held, sent[FIRST] - plain, min(sent[LAST:]) - plain)


def row(name: str, num_ranks: int, found: Cost, expected: Cost) -> str:
    pairs = [(getattr(found, key), getattr(expected, key)) for key in ("memory", "update", "step")]
    cells = [f"{measured:,.0f} / {formula:,.0f}" for measured, formula in pairs]
    return f"| {name} | {num_ranks} | {' | '.join(cells)} |"


def is_near(found: Cost, expected: Cost) -> bool:
    """True if each cost is within a tenth of the formula."""
    pairs = [(getattr(found, key), getattr(expected, key)) for key in ("memory", "update", "step")]
    return all(abs(measured - formula) <= 0.1 * formula for measured, formula in pairs)


def main() -> None:
    """Print the table; exit with 1 if a formula is more than a tenth off."""
    parser = argparse.ArgumentParser(prog="python -m tests.distributed.costs", description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", nargs="+", type=int, default=RANKS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| technique | ranks | held | sent in an update | sent in a step |", "|---|---|---|---|---|", sep="\n")
    is_right = True
    for num_ranks in options.ranks:
        pool = Pool(num_ranks)
        try:
            for name, found in measure(pool):
                expected = FORMULAS[name](SQUARES, num_ranks)
                print(row(name, num_ranks, found, expected), flush=True)
                is_right = is_right and is_near(found, expected)
        finally:
            pool.close()
    print("\n| 70 B weights, 64 ranks | held | sent in an update | sent in a step |", "|---|---|---|---|", sep="\n")
    for name, formula in FORMULAS.items():
        cost = formula(LARGE, 64)
        print(f"| {name} | {' | '.join(format_bytes(int(n)) for n in (cost.memory, cost.update, cost.step))} |")
    sys.exit(0 if is_right else 1)


if __name__ == "__main__":
    main()
