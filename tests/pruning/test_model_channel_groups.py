from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.channels.costs import Latency
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import named_tensors
from lightning_compress.profiling import count_macs
from lightning_compress.pruning import model_channel_groups
from tests.cases import RAMP, Loader, Net, assert_same, load, save_every_step, trainer
from tests.channels.nets import SOUND, images


class Task(LightningModule):
    """Trains a network that it keeps under a name."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def loader() -> DataLoader:
    return DataLoader(TensorDataset(images(16), torch.arange(16) % 3), batch_size=4)


def fit(model: LightningModule, pruning: lc.Pruning, **options: Any) -> Trainer:
    done = trainer([pruning], **options)
    done.fit(model, loader())
    return done


@pytest.mark.parametrize("name", SOUND)
def test_what_was_masked_in_the_fit_is_what_is_removed(name: str) -> None:
    torch.manual_seed(0)
    model = Task(SOUND[name]())
    fit(model, lc.Pruning(0.5, pattern=lc.Channels(), schedule=RAMP))
    groups, _ = find_groups(model.net, (images(),), {})
    dead = sum(int(group.dead(named_tensors(model.net)).sum()) for group in groups)
    assert dead == -(-sum(group.num_channels for group in groups) // 2)
    model.eval()
    small, log = lc.shrink(model.net, images())
    torch.testing.assert_close(small(images(5)), model.net(images(5)), rtol=1e-5, atol=1e-6)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in model.net.parameters())
    again = Task(SOUND[name]())
    trainer([lc.Shrunk(log, module="net")]).fit(again, loader())


def wide() -> nn.Module:
    """Two groups of many channels."""
    layers = nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.Flatten(), nn.Linear(256, 3)
    return nn.Sequential(*layers)


class Timed(nn.Module):
    """Advances a simulated clock by a constant, and by one for each channel of its first layer."""

    now = 0.0

    def __init__(self, constant: float = 0.0) -> None:
        super().__init__()
        self.inner, self.constant = wide(), constant

    def forward(self, x: Tensor) -> Tensor:
        Timed.now += self.constant + len(self.inner[0].weight)
        return self.inner(x)


@pytest.fixture(autouse=True)
def simulated_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measures latency by the simulated clock instead of that of the machine."""
    monkeypatch.setattr(model_channel_groups, "Latency", partial(Latency, timer=lambda: Timed.now))


@pytest.mark.parametrize("of", ["parameters", "macs"])
def test_sparsity_as_a_fraction_of_parameters_or_macs(of: str) -> None:
    model = Task(wide())
    fit(model, lc.Pruning(0.5, pattern=lc.Channels(of=of), schedule=lc.Schedule(begin=0, curve="one_shot")))
    small, log = lc.shrink(model.net, images())
    remaining = {
        "parameters": lambda net: sum(p.numel() for p in net.parameters()),
        "macs": lambda net: count_macs(net, images()).total,
    }[of]
    assert 0.47 < remaining(small) / remaining(model.net) <= 0.5
    assert log.layers


def test_sparsity_as_a_fraction_of_latency() -> None:
    model = Task(Timed())
    pattern = lc.Channels(of="latency")
    fit(model, lc.Pruning(0.5, pattern=pattern, schedule=lc.Schedule(begin=0, curve="one_shot")))
    _, log = lc.shrink(model.net, images())
    assert len(log.layers["inner.0"]) == 32, "all of the latency is in these channels"
    assert "inner.2" not in log.layers


def test_more_latency_than_the_channels_have_is_refused() -> None:
    model = Task(Timed(constant=62.0))  # 126 with all 64 channels of the first layer, 63 with one
    advice = "lower the sparsity or round_to"
    words = rf"A sparsity of 0\.6 is not possible for .*: at most 0\.500 of the latency can be removed; {advice}"
    with pytest.raises(ValueError, match=words):
        fit(model, lc.Pruning(0.6, pattern=lc.Channels(of="latency")))
    assert bool((model.net.inner[0].weight != 0).all())
    with pytest.raises(ValueError, match="is not possible"):
        fit(model, lc.Pruning(0.501, pattern=lc.Channels(of="latency")))
    fit(model, lc.Pruning(0.5, pattern=lc.Channels(of="latency")))


def test_a_few_samples_are_enough_to_look_at_the_network() -> None:
    seen = []

    class Watched(Task):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            seen.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    fit(Watched(SOUND["residual"]()), lc.Pruning(0.5, pattern=lc.Channels()))
    assert (seen[0], set(seen[1:])) == (2, {4})


@pytest.mark.parametrize("of", ["channels", "macs", "latency"])
def test_in_setup_the_model_is_not_yet_where_it_is_trained(of: str) -> None:
    class Reached(Exception):
        pass

    class Away(Callback):
        def setup(self, trainer: Trainer, *_: Any, **__: Any) -> None:
            trainer.strategy._root_device = torch.device("meta")

    class Last(Callback):
        def setup(self, *_: Any, **__: Any) -> None:
            raise Reached

    pruning = lc.Pruning(0.01, pattern=lc.Channels(of=of), example_inputs=images(), targets=lc.Targets(module="net"))
    with pytest.raises(Reached):
        trainer([Away(), pruning, Last()]).fit(Task(Timed()), loader())


def test_only_groups_of_targets_go() -> None:
    model = Task(SOUND["residual"]())
    fit(model, lc.Pruning(0.5, pattern=lc.Channels(), targets=lc.Targets(include=("net.blocks.*.conv1",))))
    groups, _ = find_groups(model.net, (images(),), {})
    dead = {group.num_channels: int(group.dead(named_tensors(model.net)).sum()) for group in groups}
    assert dead[8] == 0
    assert dead[6] + dead[10] == 8


def test_frozen_members_keep_their_group_whole() -> None:
    model = Task(SOUND["residual"]())
    model.net.blocks[1].norm2.bias.requires_grad_(False)
    before = model.net.stem.weight.clone()
    fit(model, lc.Pruning(0.5, pattern=lc.Channels()))
    assert bool((model.net.stem.weight != 0).all())
    assert not torch.equal(model.net.stem.weight, before)


def test_sparsities_by_globs() -> None:
    model = Task(SOUND["residual"]())
    fit(model, lc.Pruning({"*.0.conv1": 0.5, "*.conv1": 0.2}, pattern=lc.Channels()))
    assert int((model.net.blocks[0].norm1.weight == 0).sum()) == 3
    assert int((model.net.blocks[1].norm1.weight == 0).sum()) == 2
    assert bool((model.net.stem.weight != 0).all())
    with pytest.raises(ValueError, match="'nothing' matches no layer whose channels can be removed; the names are"):
        fit(Task(SOUND["residual"]()), lc.Pruning({"nothing": 0.5}, pattern=lc.Channels()))


@pytest.mark.parametrize("score", [lc.SynFlow(rounds=3), lc.SNIP(), lc.Taylor(), lc.Movement(), lc.LAMP(), lc.FPGM()])
def test_every_kind_of_score(score: Any) -> None:
    model = Task(SOUND["residual"]())
    fit(model, lc.Pruning(0.5, pattern=lc.Channels(), score=score, schedule=RAMP, targets=lc.Targets(module="net")))
    groups, _ = find_groups(model.net, (images(),), {})
    assert sum(int(group.dead(named_tensors(model.net)).sum()) for group in groups) == 12


def test_example_inputs_instead_of_a_training_step() -> None:
    class NeverCalledWhole(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            x = self.net.blocks(self.net.stem(batch[0]).relu()).mean(dim=(2, 3))
            return nn.functional.cross_entropy(self.net.fc(x), batch[1])

    with pytest.raises(ValueError, match=r"name the network with Targets\(module='...'\), or give example_inputs"):
        fit(NeverCalledWhole(SOUND["residual"]()), lc.Pruning(0.5, pattern=lc.Channels()))
    model = NeverCalledWhole(SOUND["residual"]())
    targets = lc.Targets(module="net")
    fit(model, lc.Pruning(0.5, pattern=lc.Channels(), targets=targets, example_inputs=images()))
    assert lc.shrink(model.net, images())[1].layers


def test_of_a_distilled_model_only_the_student_is_pruned() -> None:
    teacher = SOUND["residual"]()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    distilled = lc.DistillationModule(Task(SOUND["residual"]()), teacher)
    fit(distilled, lc.Pruning(0.5, pattern=lc.Channels()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert len(lc.shrink(distilled.student.net, images())[1].layers) > 2


@pytest.mark.parametrize("order", [1, -1])
def test_with_quantization_every_channel_stays_zero(order: int) -> None:
    model = Task(SOUND["residual"]())
    callbacks = [lc.Pruning(0.5, pattern=lc.Channels(), schedule=RAMP), lc.QuantizationAwareTraining()]
    trainer(callbacks[::order]).fit(model, loader())
    groups, _ = find_groups(model.net, (images(),), {})
    assert sum(int(group.dead(named_tensors(model.net)).sum()) for group in groups) == 12
    with pytest.raises(ValueError, match="belongs to a quantizer: shrink first"):
        lc.shrink(model.net, images())


def test_resumed_after_the_channels_are_gone(tmp_path: Path) -> None:
    """Masked fit, removal, fine-tuning that is interrupted: one way or the other, the same network."""
    model = Net()
    trainer([lc.Pruning(0.5, pattern=lc.Channels(), scope="layer", schedule=RAMP)]).fit(model, Loader())
    small, log = lc.shrink(model, torch.randn(2, 4, 5, 5))
    assert small.conv1.out_channels == small.conv2.out_channels == 4
    whole = save_every_step(tmp_path / "whole")
    trainer([lc.Shrunk(log), whole]).fit(small, Loader())
    fresh = Net()
    rest = save_every_step(tmp_path / "rest")
    trainer([lc.Shrunk(log), rest]).fit(fresh, Loader(), ckpt_path=tmp_path / "whole" / "step=4.ckpt")
    ends = [load(tmp_path / run / "step=10.ckpt")["state_dict"] for run in ("whole", "rest")]
    assert_same(*ends)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"growth": lc.SET()}, "leave distribution and growth out"),
        ({"distribution": lc.ERK()}, "leave distribution and growth out"),
        ({"pattern": lc.Channels(of="macs"), "scope": "layer"}, "is a cost of the full network"),
        ({"sparsity": {"*": 0.5}, "pattern": lc.Channels(of="parameters")}, "is a cost of the full network"),
    ],
)
def test_refused_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        lc.Pruning(**{"sparsity": 0.5, "pattern": lc.Channels(), **options})


@pytest.mark.parametrize(
    ("net", "pruning", "words"),
    [
        (
            SOUND["residual"](),
            lc.Pruning(0.95, pattern=lc.Channels()),
            r"at most 0\.875 of the channels can be removed",
        ),
        (SOUND["residual"](), lc.Pruning(0.5, pattern=lc.Channels(round_to=8)), r"at most 0\.083 of the channels"),
        (nn.Sequential(nn.Flatten(), nn.Linear(108, 3)), lc.Pruning(0.5, pattern=lc.Channels()), "can be removed"),
        (
            SOUND["padded"](),
            lc.Pruning(0.5, pattern=lc.Channels(), targets=lc.Targets(include=("net.stem",))),
            r"no channels of 'net\.stem\.weight' can be removed: all layers of their channel groups must be targets",
        ),
    ],
)
def test_refused_before_training(net: nn.Module, pruning: lc.Pruning, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fit(Task(net), pruning)
