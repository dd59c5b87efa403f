"""Tensor parallelism: two ranks that compute each layer together train what one process does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import TensorDataset

import lightning_compress as lc
from tests.cases import CASES, RAMP, Case, Loader, Net, assert_same, trainer
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.distributed.test_ddp import assert_close, check_is_one_process


def refusal(case: Case) -> str:
    """Words of the message about what is not supported."""
    if case.name == "block":  # of its last layer, two rows of four are on a rank
        return "cannot be cut into blocks of 4x4"
    if case.name.startswith("qat_learned"):
        return "does not support observer=Learned()"
    return "WeightClustering does not support tensor parallelism" if "dkm" in case.name else ""


# The others are tried on the blocks below, where layers are cut by rows, too.
DEFAULT = ("cubic", "snip", "channels", "two_callbacks", "prune_and_cluster_and_qat", "size_budget")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=case.name, marks=[] if case.name in DEFAULT else pytest.mark.slow)
        for case in CASES
        if not refusal(case)
    ],
)
def test_two_ranks_are_one_process(case: Case, pool: Pool) -> None:
    check_is_one_process(case, "tp", pool)


@pytest.mark.parametrize("case", [case for case in CASES if refusal(case)], ids=lambda case: case.name)
def test_what_needs_whole_layers_is_refused(case: Case, pool: Pool) -> None:
    for message in pool(jobs.refusal, case.name, "tp"):
        assert refusal(case) in message


@pytest.mark.parametrize(
    "name", ["cubic", "prune_and_cluster_and_qat", "rigl", "rewind_weights", "channels", "size_budget"]
)
def test_resumed_run_equals_uninterrupted(name: str, pool: Pool, tmp_path: Path) -> None:
    whole = pool(jobs.fit, name, "tp", 0, tmp_path)[0]
    for step in (3, 8):
        resumed = pool(jobs.fit, name, "tp", 50, None, tmp_path / f"step={step}.ckpt")[0]
        assert_same(resumed.state, whole.state)
        assert_same(resumed.masks, whole.masks[step:])


@pytest.mark.parametrize(("before", "after"), [("tp", "ddp"), ("ddp", "tp")])
def test_runs_move_between_strategies(before: str, after: str, pool: Pool, tmp_path: Path) -> None:
    whole = pool(jobs.fit, "prune_and_cluster_and_qat", before, 0, tmp_path)[0]
    resumed = pool(jobs.fit, "prune_and_cluster_and_qat", after, 0, None, tmp_path / "step=3.ckpt")[0]
    assert_same(resumed.masks, whole.masks[3:])
    assert_close(resumed.state, whole.state)


@pytest.mark.parametrize("kind", ["tp", "fsdp2"])
def test_a_finalized_model_is_whole(kind: str, pool: Pool, tmp_path: Path) -> None:
    outputs, said = pool(jobs.finalize, kind, tmp_path / "model.packed")[0]
    expected, _ = jobs.finalize("one", tmp_path / "model.packed")
    assert torch.allclose(outputs, expected, rtol=0, atol=1e-9)
    assert "is sharded over ranks: pack lc.finalize(model), which gathers it" in said


def test_a_student_is_cut(pool: Pool) -> None:
    first, second = pool(jobs.distil, "cubic", "tp")
    assert_same(first.state, second.state)
    assert_close(first.state, jobs.distil("cubic", "one").state)


class Block(nn.Module):
    """A feed-forward block of a transformer, with a gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(8, 16), nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


PLAN = {"gate": ColwiseParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}


class Blocks(Net):
    """Two blocks whose layers are cut by columns and by rows, and a head that is whole on each rank."""

    def __init__(self, *, is_cut: bool) -> None:
        super().__init__("adam")
        self.is_cut = is_cut
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.blocks = nn.Sequential(Block(), Block())
        del self.conv1, self.conv2, self.norm1, self.norm2
        self.fc = nn.Linear(8, 4)
        nn.init.normal_(self.fc.weight, generator=torch.Generator().manual_seed(0))
        nn.init.zeros_(self.fc.bias)

    def train(self, mode: bool = True) -> Net:
        return nn.Module.train(self, mode)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(x))

    def configure_model(self) -> None:
        if self.is_cut and not isinstance(self.blocks[0].up.weight, DTensor):
            for block in self.blocks:
                parallelize_module(block, self.device_mesh["tensor_parallel"], PLAN)


def vectors() -> Loader:
    generator = torch.Generator().manual_seed(0)
    inputs, classes = torch.randn(40, 8, generator=generator), torch.randint(4, (40,), generator=generator)
    return Loader(TensorDataset(inputs.double(), classes))


BLOCKS = {
    "global": lambda: [lc.Pruning(0.8, schedule=RAMP)],
    "each": lambda: [lc.Pruning(0.8, scope="layer", schedule=RAMP)],
    "two_of_four": lambda: [lc.Pruning(0.5, pattern=lc.NM(2, 4), schedule=RAMP)],
    "squares": lambda: [lc.Pruning(0.5, pattern=lc.Block((4, 4)), schedule=RAMP)],
    "lamp": lambda: [lc.Pruning(0.8, score=lc.LAMP(), schedule=RAMP)],
    "rigl": lambda: [lc.Pruning(0.8, growth=lc.RigL(), schedule=lc.Schedule(end=0.8, every=2))],
    "channels": lambda: [lc.QuantizationAwareTraining()],
    "groups": lambda: [lc.QuantizationAwareTraining(weights=lc.Int(4, granularity=4), activations=None)],
    "mse": lambda: [lc.QuantizationAwareTraining(weights=lc.Int(4, observer=lc.MSE()))],
    "affine": lambda: [lc.QuantizationAwareTraining(activations=lc.Int(8, symmetric=False))],
    "clusters": lambda: [lc.WeightClustering(4, schedule=RAMP)],
    "clusters_of_channels": lambda: [lc.WeightClustering(4, granularity="channel", schedule=RAMP)],
    "pairs": lambda: [lc.WeightClustering(4, vector_size=2, schedule=RAMP)],
    "size": lambda: [lc.SizeBudget(1800, schedule=RAMP)],
    "inner": lambda: [lc.Pruning(0.5, pattern=lc.Channels(), schedule=RAMP)],
    "both": lambda: [lc.Pruning(0.8, schedule=RAMP), lc.QuantizationAwareTraining()],
}


def fit_blocks(name: str, kind: str) -> dict[str, Tensor] | str:
    callbacks: list[Callback] = BLOCKS[name]()
    torch.manual_seed(0)
    model = Blocks(is_cut=kind == "tp").double()
    options: dict[str, Any] = jobs.placed(kind)
    trainer(callbacks, **options).fit(model, vectors())
    return {key: tensor.clone() for key, tensor in jobs.whole(model.state_dict()).items()}


@pytest.mark.parametrize("name", BLOCKS)
def test_layers_cut_by_columns_and_by_rows(name: str, pool: Pool) -> None:
    first, second = pool(fit_blocks, name, "tp")
    assert_same(first, second)
    one = fit_blocks(name, "one")
    assert_close(first, one)
    assert all(torch.equal(first[key] == 0, one[key] == 0) for key in one)


def misfit(granularity: int) -> str:
    weights = lc.Int(4, granularity=granularity)
    try:
        trainer([lc.QuantizationAwareTraining(weights=weights, activations=None)], **jobs.placed("tp")).fit(
            Blocks(is_cut=True).double(), vectors()
        )
    except ValueError as error:
        return str(error)
    return ""


def test_groups_that_are_cut_are_named(pool: Pool) -> None:
    # 8 divides the inputs of all layers, also the share of 8 that a rank has of the 16 of "down".
    assert pool(misfit, 8) == ["", ""]
