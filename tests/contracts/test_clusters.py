"""Contracts 2 and 3 for shared values: at most so many at every moment, zeros where they were."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

import lightning_compress as lc
from lightning_compress.clustering.callback import WeightClustering
from lightning_compress.functional.masks import unpack_bits
from tests.cases import (
    CASES,
    NUM_STEPS,
    OPTIMIZERS,
    RAMP,
    Case,
    Loader,
    Net,
    dataset,
    every_clustering,
    load,
    placed,
    run,
    save_every_step,
    trainer,
    val_loader,
)
from tests.lifecycle.test_averaging import AVERAGES

WITH_INTEGERS = [case for case in CASES if case.values and case.quantizes]
WEIGHTS = ("conv1.weight", "conv2.weight", "fc.weight")


def num_values(weight: Tensor) -> int:
    return len(weight.detach().unique())


class Witness(Net):
    """Counts its own values whenever somebody could."""

    def __init__(self, optimizer: str) -> None:
        super().__init__(optimizer)
        self.history: list[list[int]] = []
        self.validated: list[list[int]] = []
        self.momenta: list[int] = []

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self.history.append(self.counts())
        state = self.trainer.optimizers[0].state[self.conv1.weight]
        self.momenta = [num_values(v) for v in state.values() if isinstance(v, Tensor) and v.ndim == 4]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.validated.append(self.counts())

    def counts(self) -> list[int]:
        return [num_values(self.get_parameter(name)) for name in WEIGHTS]


def begun(case: Case) -> int:
    """Steps after which all values are shared."""
    if case.name == "cluster_once":
        return 1
    return 8 if case.name in ("prune_and_cluster", "rigl_and_cluster", "prune_and_cluster_and_qat") else 7


@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
@every_clustering
def test_values_are_few_at_every_moment(case: Case, optimizer: str, tmp_path: Path) -> None:
    model = Witness(optimizer)
    run(case, model, save_every_step(tmp_path))
    first = begun(case)
    assert len(model.history) == NUM_STEPS
    assert all(max(counts) <= case.values for counts in model.history[first:])
    assert min(model.history[-1]) > 1, "one value for all is no codebook"
    assert all(max(counts) <= case.values for counts in model.validated[4:])
    assert model.momenta, "the optimizer has no momenta to look at"
    assert max(model.momenta) <= case.values
    for step in range(first + 1, NUM_STEPS + 1):
        state = load(tmp_path / f"step={step}.ckpt")["state_dict"]
        assert all(num_values(state[name]) <= case.values for name in WEIGHTS)


@every_clustering
def test_values_are_trained(case: Case, tmp_path: Path) -> None:
    run(case, None, save_every_step(tmp_path))
    before, after = (load(tmp_path / f"step={step}.ckpt")["state_dict"] for step in (NUM_STEPS - 1, NUM_STEPS))
    for name in WEIGHTS:
        assert not torch.equal(before[name], after[name])
        live = before[name] != 0
        assert torch.equal(live, after[name] != 0)


@pytest.mark.parametrize("average", ["ema", "mean", "swa"])
@pytest.mark.parametrize("order", [1, -1], ids=["before", "after"])
@every_clustering
def test_averages_have_as_few_values(case: Case, average: str, order: int, tmp_path: Path) -> None:
    if order == 1 and "average first" in case.refused:
        pytest.skip(case.refused["average first"])
    model = Net()
    case.prepare(model)
    callbacks = placed(AVERAGES[average](), case.callbacks(), order)
    trainer([*callbacks, save_every_step(tmp_path)]).fit(model, Loader(), val_loader())
    assert all(num_values(model.get_parameter(name)) <= case.values for name in WEIGHTS)
    state = load(tmp_path / f"step={NUM_STEPS}.ckpt")["state_dict"]
    assert all(num_values(state[name]) <= case.values for name in WEIGHTS)


def test_weights_are_held_on_schedule(tmp_path: Path) -> None:
    trainer([lc.WeightClustering(4, schedule=RAMP), save_every_step(tmp_path)]).fit(Net(), Loader())
    shares, before = [], torch.zeros(288, dtype=torch.bool)
    for step in range(1, NUM_STEPS + 1):
        callbacks = load(tmp_path / f"step={step}.ckpt")["callbacks"]
        (key,) = (key for key in callbacks if key.startswith("WeightClustering"))
        packed = callbacks[key]["constraint"]["conv1.weight"]["free"]
        held = torch.ones(288, dtype=torch.bool) if packed is None else ~unpack_bits(packed, torch.Size([288]))
        assert not (before & ~held).any(), "a held weight was let go"
        before = held
        shares.append(int(held.sum()))
    # 288 (1 - (1 - x)^3) with x = 0, 1/6, 3/6, 5/6 and 1 after steps 1, 2, 4, 6 and 7
    assert shares == [0, 121, 121, 252, 252, 287, 288, 288, 288, 288]


@pytest.mark.parametrize("case", WITH_INTEGERS, ids=lambda case: case.name)
def test_integers_in_the_file_are_few_in_each_channel_and_keep_every_zero(case: Case, tmp_path: Path) -> None:
    model = run(case)
    lc.export_onnx(lc.finalize(model), tmp_path / "model.onnx", dataset(2).tensors[0])
    constants = [onnx.numpy_helper.to_array(c) for c in onnx.load(tmp_path / "model.onnx").graph.initializer]
    integers = [torch.from_numpy(c.copy()) for c in constants if c.dtype == np.int8 and c.ndim > 1]
    assert len(integers) == len(WEIGHTS)
    for name in WEIGHTS:
        weight = model.get_parameter(name).detach()
        (stored,) = (c if c.shape == weight.shape else c.T for c in integers if set(c.shape) == set(weight.shape))
        assert all(len(channel.unique()) <= case.values for channel in stored)
        assert bool((stored[weight == 0] == 0).all())
        assert num_values(stored) > 1
    if case.zeros:
        assert sum(int((c == 0).sum()) for c in integers) >= case.zeros


def test_layers_that_would_not_gain_are_left_alone() -> None:
    callback = lc.WeightClustering(128, schedule=RAMP)
    model = Net()
    before = model.conv2.weight.clone()
    trainer([callback]).fit(model, Loader())
    assert callback.unclustered == {
        "conv2": "its codebooks would be as large as its 64 weights",
        "fc": "its codebooks would be as large as its 32 weights",
    }
    assert num_values(model.conv1.weight) <= 128
    assert num_values(model.conv2.weight) == before.numel()


def test_numbers_by_glob() -> None:
    model = Net()
    trainer([lc.WeightClustering({"conv2": 2, "conv*": 5}, schedule=RAMP)]).fit(model, Loader())
    assert [num_values(model.get_parameter(name)) for name in WEIGHTS] == [5, 2, 32]


def test_the_clustered_checkpoint_loads_into_the_plain_class(tmp_path: Path) -> None:
    model = Net()
    trainer([lc.WeightClustering(4), save_every_step(tmp_path)]).fit(model, Loader())
    fresh = Net()
    fresh.load_state_dict(load(tmp_path / f"step={NUM_STEPS}.ckpt")["state_dict"], strict=True)
    assert all(torch.equal(fresh.get_parameter(name), model.get_parameter(name)) for name in WEIGHTS)


def refused(*callbacks: Any, model: Net | None = None) -> str:
    with pytest.raises(ValueError, match=r".*") as caught:
        trainer(list(callbacks)).fit(model or Net(), Loader())
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("number", [1, 0, -4, 2**16 + 1, 2.5, "16"])
def test_numbers_that_make_no_codebook(number: Any) -> None:
    with pytest.raises(ValueError, match=r"num_clusters=.* must be an int from 2 to 65536, such as 16"):
        lc.WeightClustering(number)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"granularity": "row"}, "granularity='row' must be 'tensor', 'channel', or a positive number of channels"),
        ({"granularity": 0}, "granularity=0 must be"),
        ({"vector_size": 3}, "vector_size=3 must be 1, 2 or 4"),
        ({"vector_size": 2, "granularity": "channel"}, "set granularity='tensor'"),
        ({"init": "random"}, "init='random' must be"),
        ({"gradient": "max"}, "gradient='max' is unknown: write 'mean' or 'sum'"),
    ],
)
def test_options_that_are_unknown(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lc.WeightClustering(4, **options)


def test_nothing_that_could_gain() -> None:
    assert "would save no bytes in any layer ('conv1': " in refused(lc.WeightClustering(2**12))


def test_glob_without_a_layer() -> None:
    assert "num_clusters: 'head' matches no selected layer" in refused(lc.WeightClustering({"head": 4, "conv*": 4}))


def test_pruning_comes_first() -> None:
    assert "put it after the pruning callback in callbacks=[...]" in refused(lc.WeightClustering(4), lc.Pruning(0.5))


def test_two_callbacks_on_one_layer() -> None:
    other = lc.WeightClustering(4, targets=lc.Targets(include=("conv1",)))
    assert "'conv1.weight' is clustered by two callbacks" in refused(lc.WeightClustering(4), other)


def test_weights_that_are_not_finite() -> None:
    model = Net()
    model.conv2.weight.data[0, 0] = torch.nan
    assert "'conv2.weight' has weights that are NaN or infinite" in refused(lc.WeightClustering(4), model=model)


def test_the_registry_has_every_granularity() -> None:
    callbacks = [c for case in CASES for c in case.callbacks() if isinstance(c, WeightClustering)]
    assert {type(c.granularity) for c in callbacks} == {str, int}
    assert {c.granularity for c in callbacks} >= {"tensor", "channel"}
