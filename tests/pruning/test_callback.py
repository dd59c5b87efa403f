"""What a Pruning and a Fixed accept; what they do is the contracts' matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

import lightning_compress as lc
from tests import cases


@pytest.mark.parametrize("sparsity", [0, 0.0, 0.5, 0.999, {"a": 0.5, "b": 0.0}])
def test_sparsities(sparsity: Any) -> None:
    assert lc.Pruning(sparsity).sparsity == sparsity


@pytest.mark.parametrize("sparsity", [1, 1.0, -0.1, 90, "0.9", None, float("nan"), {"a": 1.5}, {"a": 0.5, "b": None}])
def test_what_is_no_sparsity(sparsity: Any) -> None:
    with pytest.raises(ValueError, match=r"fraction of zeros and must lie in \[0, 1\)"):
        lc.Pruning(sparsity)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"scope": "model"}, "scope='model' is unknown: write 'global' or 'layer'"),
        ({"growth": lc.RigL(), "rewind": lc.RewindWeights(0)}, "growth and rewind exclude each other"),
        ({"recalibrate": 0}, "recalibrate=0"),
        ({"pattern": lc.NM(1, 4)}, r"sparsity=0\.5\) is not possible with NM\(1, 4\): its sparsity must be 0\.75"),
        ({"pattern": lc.NM(2, 4), "distribution": lc.ERK()}, "NM fixes the sparsity of every layer"),
        ({"pattern": lc.NM(2, 4), "growth": lc.SET()}, "NM fixes the sparsity of every layer"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        lc.Pruning(0.5, **options)


def test_by_layer_is_uniform() -> None:
    assert lc.Pruning(0.5, scope="layer").distribution == lc.Uniform()
    assert lc.Pruning(0.5, scope="layer", distribution=lc.ERK()).distribution == lc.ERK()
    assert lc.Pruning(0.5).distribution is None


def test_two_of_a_kind_have_states_of_their_own() -> None:
    keys = {lc.Pruning(0.5, targets=lc.Targets(include=(name,))).state_key for name in ("a", "b")}
    assert len(keys) == 2
    assert lc.Pruning(0.5).state_key == lc.Pruning(0.9).state_key
    assert lc.Pruning(0.5).state_key != lc.Fixed().state_key


def test_misfits_are_refused_before_the_fit(small: type, loader: DataLoader, trainer: Callable) -> None:
    module = small()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"'net\.3\.weight' cannot be cut into blocks of 2x2"):
        trainer(lc.Pruning(0.5, pattern=lc.Block((2, 2)))).fit(module, loader)
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in before.items())


@pytest.mark.parametrize(("pattern", "sparsity"), [(lc.Channels(), 0.8), (lc.Block((1, 8)), 0.9)])
def test_a_layer_that_would_lose_its_last_unit_is_refused(
    small: type, loader: DataLoader, trainer: Callable, pattern: Any, sparsity: float
) -> None:
    pruning = lc.Pruning({"net.3": sparsity}, pattern=pattern)
    with pytest.raises(ValueError, match=r"net\.3"):
        trainer(pruning).fit(small(), loader)


def test_fixed_needs_zeros(small: type, loader: DataLoader, trainer: Callable) -> None:
    with pytest.raises(ValueError, match="finds no zeros"):
        trainer(lc.Fixed()).fit(small(), loader)


def test_fixed_keeps_just_the_zeros_there_are(small: type, loader: DataLoader, trainer: Callable) -> None:
    module = small()
    with torch.no_grad():
        module.net[0].weight[:3] = 0.0
        module.net[3].weight[0, 0] = -0.0
    trainer(lc.Fixed()).fit(module, loader)
    zeros = module.net[0].weight == 0
    assert zeros[:3].all()
    assert not zeros[3:].any()
    assert (module.net[3].weight == 0).sum() == 1
    assert not torch.signbit(module.net[3].weight[0, 0])


def test_nothing_grows_after_the_end_of_the_schedule() -> None:
    changes: list[int] = []

    class Record(Callback):
        def on_train_batch_end(self, run: Any, *args: Any) -> None:
            changes.append(run.callbacks[0].num_changes)

    schedule = lc.Schedule(begin=0.0, end=5, every=1, curve="one_shot")
    cases.trainer([lc.Pruning(0.5, growth=lc.SET(), schedule=schedule), Record()]).fit(cases.Net(), cases.Loader())
    assert changes[:4] == [2, 3, 4, 5]
    assert changes[4:] == [changes[4]] * 6
