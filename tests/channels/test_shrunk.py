from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

import lightning_compress as lc
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import named_tensors
from tests.cases import Loader, Net, assert_same, load, save_every_step, trainer, val_loader
from tests.channels.nets import Residual

INPUTS = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))


class Outer(LightningModule):
    """Keeps its network under a name, and hyperparameters."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = Net(optimizer)
        self.training_step, self.configure_optimizers = self.net.training_step, self.net.configure_optimizers


class WithParameters(Net):
    """Remembers what it was made with."""

    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__(optimizer)
        self.save_hyperparameters()


def small(model: Net) -> tuple[Net, lc.RemovalLog]:
    for group in find_groups(model, (INPUTS,), {})[0]:
        group.zero_(named_tensors(model), torch.arange(group.num_channels) % 2 == 1)
    return lc.shrink(model, INPUTS)


def test_a_fit_of_the_smaller_model_resumes_as_if_uninterrupted(tmp_path: Path) -> None:
    _, log = small(Net())
    trainer([lc.Shrunk(log), save_every_step(tmp_path / "whole")]).fit(Net("adam"), Loader(), val_loader())
    last = load(tmp_path / "whole" / "step=10.ckpt")
    assert last["state_dict"]["conv1.weight"].shape[0] == 4
    for step in (2, 5, 9):
        again = [lc.Shrunk(log), save_every_step(tmp_path / f"from{step}")]
        trainer(again).fit(Net("adam"), Loader(), val_loader(), ckpt_path=tmp_path / "whole" / f"step={step}.ckpt")
        assert_same(load(tmp_path / f"from{step}" / "step=10.ckpt")["state_dict"], last["state_dict"])


def test_pruning_again_within_the_smaller_model(tmp_path: Path) -> None:
    model, log = small(Net())
    trainer([lc.Shrunk(log), lc.Pruning(0.5)]).fit(model, Loader(), val_loader())
    weights = [target.parameter for target in lc.Targets().select(model)]
    assert sum(w.numel() for w in weights) == 144 + 16 + 16
    assert sum(int((w == 0).sum()) for w in weights) == 88


def test_checkpoints_load_into_the_plain_class(tmp_path: Path) -> None:
    _, log = small(Net())
    log.save(tmp_path / "log.json")
    model = WithParameters("adam")
    trainer([lc.Shrunk(tmp_path / "log.json"), save_every_step(tmp_path)]).fit(model, Loader(), val_loader())
    for step in ("step=10", "step=3"):
        loaded = lc.Shrunk(log).load_from_checkpoint(WithParameters, tmp_path / f"{step}.ckpt")
        assert type(loaded) is WithParameters
        assert loaded.optimizer == "adam"
        assert_same(dict(loaded.state_dict()), dict(load(tmp_path / f"{step}.ckpt")["state_dict"]))
    assert torch.equal(loaded.eval()(INPUTS), loaded(INPUTS))
    with pytest.raises(RuntimeError, match="size mismatch"):
        WithParameters.load_from_checkpoint(tmp_path / "step=10.ckpt")
    state = load(tmp_path / "step=10.ckpt")
    del state["state_dict"]["fc.bias"]
    torch.save(state, tmp_path / "broken.ckpt")
    with pytest.raises(RuntimeError, match="Missing key"):
        lc.Shrunk(log).load_from_checkpoint(WithParameters, tmp_path / "broken.ckpt")


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_evaluation_of_a_checkpoint(tmp_path: Path, stage: str) -> None:
    _, log = small(Net())
    trainer([lc.Shrunk(log), save_every_step(tmp_path)]).fit(Net(), Loader(), val_loader())
    fresh = Net()
    getattr(trainer([lc.Shrunk(log)]), stage)(fresh, val_loader(), ckpt_path=tmp_path / "step=10.ckpt")
    assert_same(dict(fresh.state_dict()), dict(load(tmp_path / "step=10.ckpt")["state_dict"]))


def test_a_part_of_the_module() -> None:
    _, log = small(Net())
    model = Outer()
    trainer([lc.Shrunk(log, module="net")]).fit(model, Loader())
    assert model.net.conv1.out_channels == 4
    with pytest.raises(ValueError, match=r"pass its submodule 'net'"):
        trainer([lc.Shrunk(log)]).fit(Outer(), Loader())
    with pytest.raises(ValueError, match="the model has no module 'body'"):
        trainer([lc.Shrunk(log, module="body")]).fit(Outer(), Loader())


def test_the_optimizer_holds_the_smaller_parameters() -> None:
    _, log = small(Net())
    model = Net()
    fit = trainer([lc.Shrunk(log)], max_steps=1)
    fit.fit(model, Loader())
    held = {id(p) for group in fit.optimizers[0].param_groups for p in group["params"]}
    assert held == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("earlier", [lc.Pruning(0.5), lc.QuantizationAwareTraining(), EMAWeightAveraging()])
def test_what_needs_the_final_shapes_stands_behind(earlier: object) -> None:
    _, log = small(Net())
    with pytest.raises(ValueError, match=r"Shrunk must precede .*: put it first in callbacks"):
        trainer([earlier, lc.Shrunk(log)]).fit(Net(), Loader())


def test_no_log_no_callback(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text("{}")
    with pytest.raises(ValueError, match="is not a removal log"):
        lc.Shrunk(tmp_path / "log.json")


def test_a_checkpoint_of_before_the_removal_is_told_apart(tmp_path: Path) -> None:
    model, log = Net(), small(Net())[1]
    trainer([save_every_step(tmp_path)]).fit(model, Loader(), val_loader())
    with pytest.raises(ValueError, match=r"'conv1\.weight' has shape \(8, 4, 3, 3\) in the checkpoint, as before"):
        trainer([lc.Shrunk(log)]).validate(Net(), val_loader(), ckpt_path=tmp_path / "step=3.ckpt")


class Deep(LightningModule):
    """A residual network, and perhaps a copy of it that is updated elsewhere."""

    def __init__(self, *, with_copy: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Residual()
        if with_copy:
            self.target = copy.deepcopy(self.net).requires_grad_(False)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self.net(batch[0][:, :3]), batch[1])

    validation_step = training_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


def without_a_block() -> lc.RemovalLog:
    net = Residual().eval()
    for parameter in net.blocks[1].parameters():
        torch.nn.init.zeros_(parameter)
    return lc.shrink(net, INPUTS[:, :3])[1]


def test_a_checkpoint_without_a_block(tmp_path: Path) -> None:
    log = without_a_block()
    model = Deep()
    trainer([lc.Shrunk(log, module="net"), save_every_step(tmp_path)]).fit(model, Loader())
    assert type(model.net.blocks[1]) is torch.nn.Identity
    again = Deep()
    trainer([lc.Shrunk(log, module="net")]).fit(again, Loader(), ckpt_path=tmp_path / "step=7.ckpt")
    assert_same(dict(again.state_dict()), dict(model.state_dict()))
    loaded = lc.Shrunk(log, module="net").load_from_checkpoint(Deep, tmp_path / "step=10.ckpt")
    assert_same(dict(loaded.state_dict()), dict(model.state_dict()))


def test_a_checkpoint_with_the_block_is_told_apart(tmp_path: Path) -> None:
    trainer([save_every_step(tmp_path)]).fit(Deep(), Loader())
    with pytest.raises(
        ValueError, match=r"'net\.blocks\.1\.conv1\.weight' of a removed block is in the checkpoint, as"
    ):
        trainer([lc.Shrunk(without_a_block(), module="net")]).validate(
            Deep(), val_loader(), ckpt_path=tmp_path / "step=3.ckpt"
        )


def test_a_copy_loses_the_block_with_the_weights_it_loads() -> None:
    model = Deep(with_copy=True)
    run = trainer([lc.Shrunk(without_a_block(), module="net")])

    class Update(Callback):
        def on_train_batch_end(self, run: Trainer, pl_module: LightningModule, *_: Any) -> None:
            pl_module.target.load_state_dict(pl_module.net.state_dict())

    run.callbacks.append(Update())
    with pytest.warns(UserWarning, match="'target' is as 'net' was before the removal"):
        run.fit(model, Loader())
    assert type(model.target.blocks[1]) is torch.nn.Identity


def test_a_model_that_is_built_late() -> None:
    class Late(Outer):
        def __init__(self) -> None:
            super().__init__()
            del self.net

        def configure_model(self) -> None:
            self.net = Net()

    with pytest.raises(ValueError, match="no module 'net' when callbacks are set up: build it in __init__"):
        trainer([lc.Shrunk(small(Net())[1], module="net")]).fit(Late(), Loader())
