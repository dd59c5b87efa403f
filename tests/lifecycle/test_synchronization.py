"""Steps between updates never wait for the device: no operation in them returns a value, or a shape, to the host.

On a GPU such an operation stops the host until all kernels before it are done. Without one, the operations are seen by
their names; techniques take the paths that they take on a GPU.
"""

from __future__ import annotations

import traceback
from collections import Counter
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils._python_dispatch import TorchDispatchMode

import lightning_compress as lc
from lightning_compress.constraints.assignment import Assignment
from lightning_compress.functional import rounding
from lightning_compress.quantization import finite_ranges
from lightning_compress.trainer.compression_callback import techniques
from tests.cases import CASES, LOSSES, Case, Loader, Net, case, dataset, trainer
from tests.distillation.test_module import teacher

# All kinds of steps; the other cases are combinations of them.
KINDS = {
    "cubic", "movement", "rigl", "two_of_four", "channels", "fixed", "cluster_channels", "cluster_vectors", "dkm",
    "size_budget", "qat_learned", "qat_histogram", "prune_and_cluster_and_qat",
}  # fmt: skip
WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "bincount", "_unique2",
    "unique_dim", "unique_consecutive", "repeat_interleave", "_linalg_check_errors",
}  # fmt: skip
HISTOGRAMS = ("histograms.py ", "finite_ranges.py ")  # bins are fixed on the host, once all values are finite
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}


class Synchronizations(TorchDispatchMode):
    """Counts operations on whose result the host waits, by the file that called them and their names."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        masks = name in INDEXING and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
        if name in WAITING or masks:
            files = [Path(f.filename).name for f in traceback.extract_stack() if "/lightning_compress/" in f.filename]
            self.found[f"{files[-1] if files else 'elsewhere'} {name}"] += 1
        return func(*args, **(kwargs or {}))


class Watch:
    """What is found in given steps of a fit, between the first and the last of its callbacks.

    Attributes:
        found: Operations of each step in which no technique changed its constraint or its phase.
        updates: The same of all other steps.
    """

    def __init__(self, *steps: int) -> None:
        self.steps = steps
        self.found: list[dict[str, int]] = []
        self.updates: list[dict[str, int]] = []
        self.mode = Synchronizations()
        self.num_changes = 0

    def around(self, callbacks: list[Callback]) -> list[Callback]:
        return [Begin(self), *callbacks, End(self)]


class Begin(Callback):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_start(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        if run.global_step + 1 in self.watch.steps:
            self.watch.mode, self.watch.num_changes = Synchronizations(), num_changes(run)
            self.watch.mode.__enter__()


class End(Callback):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_end(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        if run.global_step in self.watch.steps:
            self.watch.mode.__exit__(None, None, None)
            changed = num_changes(run) > self.watch.num_changes
            (self.watch.updates if changed else self.watch.found).append(dict(self.watch.mode.found))


def num_changes(run: Trainer) -> int:
    return sum(technique.num_changes for technique in techniques(run))


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales stay tensors, clusters are summed in a sorted copy, and ranges of some batches are checked together."""
    monkeypatch.setattr(rounding, "_is_number", lambda scale: False)
    monkeypatch.setattr(finite_ranges, "_interval", lambda ranges: 10)
    order = cached_property(lambda self: self._member_of.argsort(stable=True))
    order.__set_name__(Assignment, "_order")
    monkeypatch.setattr(Assignment, "_order", order)


def watched(callbacks: list[Callback], model: LightningModule, *steps: int) -> Watch:
    watch = Watch(*steps)
    trainer(watch.around(callbacks)).fit(model, Loader())
    assert len(watch.found) + len(watch.updates) == len(steps)
    return watch


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name, marks=() if c.name in KINDS else pytest.mark.slow) for c in CASES]
)
def test_steps_between_updates_do_not_wait_for_the_device(case: Case) -> None:
    """Ranges are observed, and soft clusters move, in the fifth and the sixth step."""
    model = Net()
    case.prepare(model)
    steps = watched(case.callbacks(), model, 5, 6, 9).found
    assert steps
    for found in steps:
        assert not {place for place in found if not (case.name == "qat_histogram" and place.startswith(HISTOGRAMS))}


@pytest.mark.parametrize("losses", LOSSES.values(), ids=list(LOSSES))
def test_a_distilled_step_does_not_wait(losses: dict[str, Any]) -> None:
    assert watched([], lc.DistillationModule(Net(), teacher(), losses=losses), 5, 9).found == [{}, {}]


def test_a_plain_fit_does_not_wait() -> None:
    assert watched([], Net(), 5, 9).found == [{}, {}]


def test_the_mode_sees_updates() -> None:
    """After the fourth step masks are chosen."""
    (found,) = watched(case("cubic").callbacks(), Net(), 4).updates
    assert {place.split()[1] for place in found} >= {"_local_scalar_dense", "nonzero", "bincount", "index"}


@pytest.mark.parametrize("name", ["cubic", "cluster"])
def test_every_tenth_batch_waits_once(name: str) -> None:
    """All weights are compared with the constraint."""
    ((found,),) = (list(step.items()) for step in watched(case(name).callbacks(), Net(), 10).found)
    assert found == ("layer_batches.py _local_scalar_dense", 1)


def test_the_mode_sees_what_depends_on_values() -> None:
    x, mask = dataset(4).tensors[0], torch.tensor([True, False, True, False])
    with Synchronizations() as mode:
        x[mask]
        x[torch.tensor([0, 2])]
        x.sum().item()
        x[mask] = 0.0
        assert bool((x == 0).any())
        torch.equal(x, x)
        mask.nonzero()
    assert mode.found == {
        f"elsewhere {name}": number
        for name, number in {"index": 1, "_local_scalar_dense": 2, "index_put_": 1, "equal": 1, "nonzero": 1}.items()
    }
