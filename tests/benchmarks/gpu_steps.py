"""Training steps of all techniques on one device: ratios to the plain step, peak memory, synchronizations, compilation.

All arms are real fits of Lightning's Trainer, run in turns with the plain one (``interleaved.py``), on one batch of
noise that lies on the device. ``qat`` observes ranges in every step, ``qat_frozen`` in none, as the second half of a
run; ``both`` is the plain step with the teacher's forward pass in it.
"""

from __future__ import annotations

import copy
import gc
import itertools
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import timm
import torch
from distillation_step_cost import Both
from interleaved import medians, ratio_quartiles
from lightning.pytorch import Callback, LightningModule, Trainer
from step_cost import ARMS, STEADY, Plain, fit, quiet_trainer
from torch import Tensor, nn

import lightning_compress as lc

Arm = tuple[LightningModule, list[Callback]]


@dataclass(frozen=True)
class Setting:
    """A network and its batch.

    Attributes:
        name: Name in timm.
        stem: First layer, whose input channels are no multiple of four.
        size: Height and width of the images.
        batch: Images in a batch.
        num_classes: Number of classes.
        options: Further arguments of the network.
    """

    name: str
    stem: str
    size: int
    batch: int
    num_classes: int = 1000
    options: tuple[tuple[str, Any], ...] = ()

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        return timm.create_model(self.name, num_classes=self.num_classes, **dict(self.options))

    def images(self, number: int) -> Tensor:
        return torch.randn(number, 3, self.size, self.size, generator=torch.Generator().manual_seed(0))


FULL = (
    Setting("resnet50", "net.conv1", 224, 256),
    Setting("vit_base_patch16_224", "net.patch_embed.proj", 224, 128),
)
TINY = (
    Setting("test_resnet", "net.conv1.0", 32, 2, 10),
    Setting("test_vit", "net.patch_embed.proj", 32, 2, 10, (("img_size", 32), ("depth", 1))),
)


@dataclass(frozen=True)
class Repeated:
    """Batches of an epoch that are all the same one."""

    batch: tuple[Tensor, Tensor]
    number: int

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat(self.batch, self.number)


@dataclass(frozen=True)
class Steps:
    """Measurements of one network.

    Attributes:
        setting: The network and its batch.
        accelerator: Accelerator of the Trainer.
        precision: Precision of the Trainer.
        rounds: Fits of each arm after one to warm up.
        steps: Timed steps of a fit.
    """

    setting: Setting
    accelerator: str
    precision: str
    rounds: int
    steps: int

    def measurements(self) -> dict[str, Callable[[], dict[str, Any]]]:
        """One for each technique, and for the graph breaks of a quantized network."""
        names = {name: ("plain", name) for name in self.arms() if name not in ("plain", "both", "distilled")}
        names["distilled"] = ("plain", "both", "distilled")
        found: dict[str, Callable[[], dict[str, Any]]] = {
            f"steps/{self.setting.name}/{name}": lambda names=arms: self.compare(names) for name, arms in names.items()
        }
        return {**found, f"compile/{self.setting.name}/qat": self.graph_breaks}

    def arms(self) -> dict[str, Callable[[nn.Module], Arm]]:
        """A network to what is fitted, and with which callbacks."""
        rows = lc.Targets(exclude=(self.setting.stem,))
        two_of_four = lambda: [lc.Pruning(0.5, pattern=lc.NM(2, 4), schedule=STEADY, targets=rows)]  # noqa: E731
        masked, clustered = ARMS["masked"], ARMS["clustered"]
        callbacks: dict[str, Callable[[], list[Callback]]] = {
            "plain": list,
            "masked": masked,
            "two_of_four": two_of_four,
            "clustered": clustered,
            "qat": lambda: [self.quantization()],
            "qat_frozen": lambda: [self.quantization(freeze_observers=2)],
            "masked_clustered_qat": lambda: [*masked(), *clustered(), self.quantization()],
        }
        return {
            **{name: lambda net, make=make: (Plain(net), make()) for name, make in callbacks.items()},
            "both": lambda net: (Both(copy.deepcopy(net), net), []),
            "distilled": lambda net: (lc.DistillationModule(Plain(net), copy.deepcopy(net).eval()), []),
        }

    def quantization(self, freeze_observers: int | float = 1.0) -> lc.QuantizationAwareTraining:
        """QAT that is traced with two images, on the CPU."""
        return lc.QuantizationAwareTraining(
            schedule=lc.QATSchedule(freeze_observers=freeze_observers, freeze_batch_norm=1.0),
            targets=lc.Targets(module="net"),
            example_inputs=self.setting.images(2),
        )

    def compare(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Ratios of the last arm to the others, with peak memory and synchronizations of each."""
        network, data = self.setting.network(), self.data()
        peaks: dict[str, float | None] = {}

        def step_times(name: str) -> list[float]:
            module, callbacks = self.arms()[name](copy.deepcopy(network))
            release_memory()
            times = fit(module, [*callbacks, ResetPeak()], data, self.accelerator, self.precision)
            peaks[name] = peak_mb()
            return times[2:]  # after the first steps, which allocate

        results = medians({name: lambda name=name: step_times(name) for name in names}, rounds=self.rounds)
        arm = names[-1]
        ratios = {base: ratio_quartiles(results, arm, base) for base in names[:-1]}
        return {
            "step_ms": {name: 1e3 * statistics.median(times) for name, times in results.items()},
            "ratio": {base: middle for base, (_, middle, _) in ratios.items()},
            "quartiles": {base: [lower, upper] for base, (lower, _, upper) in ratios.items()},
            "rounds": self.rounds,
            "peak_mb": peaks,
            "host_syncs_per_step": {name: self.count_synchronizations(name, network) for name in names},
        }

    def count_synchronizations(self, name: str, network: nn.Module) -> float | None:
        """Operations in a step on which the host waits; ``None`` without CUDA, which alone counts them."""
        if self.accelerator == "cpu":
            return None
        module, callbacks = self.arms()[name](copy.deepcopy(network))
        release_memory()
        count = CountSynchronizations()
        quiet_trainer([count, *callbacks], self.accelerator, self.precision).fit(
            module, Repeated(self.data().batch, count.last + 1)
        )
        return count.per_step

    def graph_breaks(self) -> dict[str, Any]:
        """Graph breaks of the network in quantization-aware training, while ranges are observed."""
        explain = Explain()
        module, callbacks = self.arms()["qat"](self.setting.network())
        quiet_trainer([*callbacks, explain], self.accelerator, self.precision).fit(module, self.data())
        return explain.result

    def data(self) -> Repeated:
        """One batch on the device, again and again."""
        device = "cuda" if self.accelerator == "gpu" else "cpu"
        images = self.setting.images(self.setting.batch).to(device)
        labels = torch.arange(self.setting.batch, device=device) % self.setting.num_classes
        return Repeated((images, labels), self.steps + 4)


class ResetPeak(Callback):
    """Forgets the memory of the first steps, in which constraints are made."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2 and torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()


class CountSynchronizations(Callback):
    """Counts CUDA's warnings of synchronizing operations over some steps."""

    first, last = 2, 7

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.first:
            self.recorder = warnings.catch_warnings(record=True)
            self.caught = self.recorder.__enter__()
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
        if batch_idx == self.last:
            torch.cuda.set_sync_debug_mode("default")
            self.recorder.__exit__(None, None, None)

    @property
    def per_step(self) -> float:
        found = [each for each in self.caught if "called a synchronizing" in str(each.message)]
        return len(found) / (self.last - self.first)


class Explain(Callback):
    """Asks the compiler for the graph breaks of a network in its second step."""

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            explanation = torch._dynamo.explain(module.net)(batch[0])
            reasons = [str(each.reason) for each in explanation.break_reasons]
            self.result = {"graphs": explanation.graph_count, "graph_breaks": len(reasons), "reasons": reasons}
            torch._dynamo.reset()
            trainer.should_stop = True


def release_memory() -> None:
    """Return what earlier fits have held."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_mb() -> float | None:
    return torch.cuda.max_memory_allocated() / 1e6 if torch.cuda.is_available() else None
