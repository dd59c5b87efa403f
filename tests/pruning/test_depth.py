"""Fits that prune whole residual blocks, and the contracts of masks for them."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.profiling import count_macs
from tests.cases import BLOCK_CASES, RAMP, Case, assert_same, assert_zeros, load, masks_of, placed, save_every_step
from tests.channels.nets import Block, images
from tests.pruning.test_narrowed_norms import Task, fit, loader, state_of, val_loader

every_block_case = pytest.mark.parametrize("case", BLOCK_CASES, ids=lambda case: case.name)
AT_START = lc.Schedule(begin=0, curve="one_shot")


class Deep(nn.Module):
    """A stem and five residual blocks of different costs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(8, inner) for inner in (6, 12, 6, 12, 6)))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(self.stem(x).relu()).mean(dim=(2, 3)))


def task() -> Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Task(Deep())


def masked_blocks(net: nn.Module) -> list[str]:
    return [name for name, block in net.blocks.named_children() if not any(p.any() for p in block.parameters())]


def depth(sparsity: float = 0.4, **options: Any) -> lc.Pruning:
    return lc.Pruning(sparsity, **{"pattern": lc.Depth(), "schedule": RAMP, **options})


@every_block_case
def test_masked_is_removed(case: Case) -> None:
    model = task()
    before = list(model.state_dict())
    fit(model, *case.callbacks())
    assert list(model.state_dict()) == before
    small, log = lc.shrink(model.eval().net, images())
    assert len(log.blocks) == len(masked_blocks(model.net)) > 0
    torch.testing.assert_close(small(images(5)), model.net(images(5)), rtol=1e-5, atol=1e-6)
    assert [type(block) is nn.Identity for block in small.blocks] == [
        f"blocks.{i}" in log.blocks for i in range(5)
    ]  # fmt: skip
    again = task()
    fit(again, lc.Shrunk(log, module="net"))
    assert list(again.state_dict()) == [f"net.{name}" for name in small.state_dict()]


@every_block_case
def test_a_resumed_run_equals_an_uninterrupted_one(case: Case, tmp_path: Path) -> None:
    fit(task(), *case.callbacks(), save_every_step(tmp_path / "whole"))
    expected = state_of(tmp_path / "whole")
    for step in (1, 4, 8):
        run = fit_from(
            tmp_path / "whole" / f"step={step}.ckpt", *case.callbacks(), save_every_step(tmp_path / f"{step}")
        )
        assert run.global_step == 10
        assert_same(state_of(tmp_path / f"{step}"), expected)


def fit_from(checkpoint: Path, *callbacks: Callback) -> Trainer:
    from tests.cases import trainer

    run = trainer([*callbacks])
    run.fit(task(), loader(), val_loader(), ckpt_path=checkpoint)
    return run


class Watch(Callback):
    """Asserts that blocks are zero as a whole, after each step and in every validation."""

    def __init__(self) -> None:
        self.masks: dict[str, Tensor] = {}

    def on_train_batch_end(self, run: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.masks = masks_of(run)
        assert_zeros(dict(pl_module.named_parameters()), self.masks)
        for name, masked in self.masks.items():
            assert bool(masked.any()) == bool(masked.all()), name

    def on_validation_batch_start(self, run: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if not run.sanity_checking:
            assert_zeros(dict(pl_module.named_parameters()), masks_of(run))


@pytest.mark.parametrize("order", [1, -1], ids=["before", "after"])
@every_block_case
def test_zeros_are_those_of_whole_blocks_in_averages_too(case: Case, order: int, tmp_path: Path) -> None:
    watch, model = Watch(), task()
    average = EMAWeightAveraging(decay=0.5)
    fit(model, watch, *placed(average, case.callbacks(), order), save_every_step(tmp_path), val_check_interval=1)
    assert_zeros(dict(model.named_parameters()), watch.masks)
    assert_zeros(load(tmp_path / "step=10.ckpt")["state_dict"], watch.masks)
    assert len(masked_blocks(model.net)) == len(
        {name.split(".")[2] for name, mask in watch.masks.items() if not mask.any()}
    )


def test_copies_and_pickles() -> None:
    model = task()
    fit(model, depth())
    for copied in (copy.deepcopy(model.net), pickle.loads(pickle.dumps(model.net)), lc.finalize(model, module="net")):
        assert masked_blocks(copied) == masked_blocks(model.net)


@pytest.mark.parametrize("of", ["blocks", "parameters", "macs"])
def test_the_sparsity_is_a_fraction_of_a_cost(of: str) -> None:
    model = task()
    fit(model, depth(0.4, pattern=lc.Depth(of=of), schedule=AT_START))
    small, _ = lc.shrink(model.net, images())
    costs = {
        "blocks": lambda net: sum(isinstance(block, Block) for block in net.blocks),
        "parameters": lambda net: sum(p.numel() for p in net.parameters()),
        "macs": lambda net: count_macs(net, images()).total,
    }
    assert 0.3 <= costs[of](small) / costs[of](model.net) <= 0.6


def test_of_equal_scores_the_expensive_blocks_go_first() -> None:
    model = task()
    for block in model.net.blocks:
        for parameter in block.parameters():
            nn.init.ones_(parameter)
    fit(model, depth(0.4, pattern=lc.Depth(of="macs"), schedule=AT_START), max_steps=1)
    assert masked_blocks(model.net) == ["1", "3"]


def test_the_least_important_block_goes_first() -> None:
    for weak in ("0", "3"):
        model = task()
        for parameter in model.net.blocks.get_submodule(weak).parameters():
            parameter.data *= 0.01
        fit(model, depth(0.2, schedule=AT_START), max_steps=1)
        assert masked_blocks(model.net) == [weak]


def test_one_block_stays() -> None:
    model = task()
    fit(model, depth(0.8))
    assert len(masked_blocks(model.net)) == 4
    with pytest.raises(ValueError, match=r"at most 0\.800 of the blocks can be removed; lower the sparsity"):
        fit(task(), depth(0.9))


def test_blocks_with_layers_that_are_left_out_or_frozen_stay() -> None:
    model = task()
    model.net.blocks[2].norm1.weight.requires_grad_(False)
    fit(model, depth(0.6, targets=lc.Targets(exclude=("net.blocks.1.conv2",))))
    assert not {"1", "2"} & {*masked_blocks(model.net)}
    assert len(masked_blocks(model.net)) == 2
    with pytest.raises(ValueError, match=r"Depth: no blocks of .* can be removed: all layers of their blocks must be"):
        fit(task(), depth(targets=lc.Targets(include=("*.conv1",))))


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"of='channels'.* must be 'blocks', 'parameters', 'macs' or 'latency'"):
        lc.Depth(of="channels")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Depth ranks all blocks together: give one sparsity and scope='global'"):
        depth({"*": 0.5})
    with pytest.raises(ValueError, match="leave distribution and growth out"):
        depth(growth=lc.RigL())


def test_a_model_without_such_blocks() -> None:
    model = Task(nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 4)))
    with pytest.raises(ValueError, match=r"Depth: no blocks of 'net\.1\.weight', 'net\.3\.weight' can be removed"):
        fit(model, depth())
