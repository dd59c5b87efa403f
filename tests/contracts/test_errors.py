"""Contract 9: what cannot work is refused before training in one sentence that says what to do; nothing is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.nn.utils import parametrizations, prune

import lightning_compress as lc
from tests.cases import AT_START, RAMP, Loader, Net, assert_same, case, run, save_every_step, trainer


def fit(*callbacks: Callback, model: LightningModule | None = None, **options: Any) -> None:
    trainer(list(callbacks), **options).fit(model or Net(), Loader())


def refused(*callbacks: Callback, model: LightningModule | None = None, **options: Any) -> str:
    """Why a fit is refused; not a step is made and the model is as it was."""
    model = model or Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=r".*") as caught:
        fit(*callbacks, model=model, **options)
    assert_same(dict(model.state_dict()), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("technique", [lc.Pruning, lambda *args, **options: lc.WeightClustering(4, **options)])
def test_targets_are_checked_before_anything_is_set_up(technique: Any) -> None:
    """With the sanity check of the validation, the first thing that takes time."""

    class Started(Callback):
        def on_fit_start(self, run: Any, model: Any) -> None:
            raise AssertionError("the fit has started")

    message = refused(technique(0.9, targets=lc.Targets(include=("head*",))), Started())
    assert "'head*' matches no layer" in message


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1, 90, float("nan"), "0.9", True])
def test_sparsity_is_a_fraction_of_zeros(sparsity: Any) -> None:
    with pytest.raises(ValueError, match=r"sparsity=.* must lie in \[0, 1\), such as 0.9"):
        lc.Pruning(sparsity)


def test_sparsity_of_a_glob_is_a_fraction_of_zeros() -> None:
    with pytest.raises(ValueError, match=r"sparsity=1.2 is the fraction of zeros"):
        lc.Pruning({"conv1": 1.2})


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_glob_that_matches_nothing(field: str) -> None:
    message = refused(lc.Pruning(0.9, targets=lc.Targets(**{field: ("conv*", "head*")})))
    assert "'head*' matches no layer" in message
    assert "'conv1', 'conv2', 'fc'" in message


def test_module_that_is_not_there() -> None:
    assert "no module 'backbone'" in refused(lc.Pruning(0.9, targets=lc.Targets(module="backbone")))


def test_nothing_left_to_prune() -> None:
    assert "every layer is excluded" in refused(lc.Pruning(0.9, targets=lc.Targets(exclude=("*",))))


def test_model_without_weights() -> None:
    class Empty(Net):
        def __init__(self) -> None:
            super().__init__()
            self.conv1 = self.conv2 = self.fc = nn.Identity()

    assert "matches no layer" in refused(lc.Pruning(0.9), model=Empty())


def test_everything_frozen() -> None:
    model = Net()
    for layer in (model.conv1, model.conv2, model.fc):
        layer.requires_grad_(False)
    assert "all selected layers are frozen" in refused(lc.Pruning(0.9), model=model)


def test_sparsity_glob_that_matches_nothing() -> None:
    assert "sparsity: 'head' matches no selected layer" in refused(lc.Pruning({"conv*": 0.5, "head": 0.5}))


def test_glob_that_empties_a_layer() -> None:
    message = refused(lc.Pruning({"conv*": 0.5, "fc": 0.99}))
    assert "leaves 0 weights for 'fc.weight'" in message


def test_global_sparsity_that_empties_a_layer() -> None:
    assert "leaves 2 weights for 'conv1.weight', 'conv2.weight', 'fc.weight'" in refused(lc.Pruning(0.995))


@pytest.mark.parametrize(
    ("pattern", "sparsity", "message"),
    [
        (lc.NM(3, 5), 0.4, "'conv2.weight', 'fc.weight' has an input dimension that is not a multiple of 5"),
        (lc.Block((8, 4)), 0.5, "'fc.weight' cannot be cut into blocks of 8x4"),
    ],
)
def test_misfit_of_a_pattern_names_the_layer(pattern: Any, sparsity: float, message: str) -> None:
    told = refused(lc.Pruning(sparsity, pattern=pattern))
    assert message in told
    assert "Targets(exclude=(" in told


def test_pattern_fixes_the_sparsity() -> None:
    with pytest.raises(ValueError, match=r"sparsity=0.9\) is not possible with NM\(2, 4\): its sparsity must be 0.5"):
        lc.Pruning(0.9, pattern=lc.NM(2, 4))


@pytest.mark.parametrize("schedule", [AT_START, RAMP], ids=["at start", "later"])
def test_norm_that_does_not_follow(schedule: lc.Schedule) -> None:
    assert "no batch norm follows 'fc'" in refused(lc.Pruning(0.5, score=lc.BNScale(), schedule=schedule))


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ({"end": 1}, "end=1 is one optimizer step: write end=1.0 for the whole run or end='1ep' for one epoch"),
        ({"end": 12.0}, "end=12.0 is a fraction of the run.*int for optimizer steps or '12ep' for epochs"),
        ({"begin": 1.5}, "begin=1.5 is a fraction of the run"),
        ({"end": "12 epochs"}, "is not a valid time: write '12ep'"),
        ({"begin": -1}, "begin=-1 must not be negative"),
        ({"begin": 0.7, "end": 0.2}, "must come before end"),
        ({"begin": 100, "end": 0.5}, "must be in the same unit"),
        ({"curve": "quadratic"}, "must be one of 'one_shot', 'linear'"),
    ],
)
def test_times_that_are_none(times: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lc.Schedule(**times)


@pytest.mark.parametrize(
    ("end", "options", "message"),
    [
        (0.7, {"max_epochs": -1}, "fraction of the run, which has no end"),
        ("3ep", {}, "end='3ep' lies beyond the run's 2 epochs: use an earlier time or a longer run."),
        (11, {}, "end=11 lies beyond the run's 10"),
        (11, {"max_steps": 8, "max_epochs": -1}, "end=11 lies beyond the run's 8"),
        (6, {"accumulate_grad_batches": 2, "limit_train_batches": 4}, "end=6 lies beyond the run's 4"),
    ],
)
def test_end_that_the_run_has_not_got(end: Any, options: dict[str, Any], message: str) -> None:
    assert message in refused(lc.Pruning(0.9, schedule=lc.Schedule(begin=0, end=end)), **options)


def test_rewind_to_a_time_that_the_run_has_not_got() -> None:
    assert "to='3ep' lies beyond" in refused(lc.Pruning(0.9, rewind=lc.RewindWeights("3ep"), schedule=RAMP))


def test_two_callbacks_on_one_layer() -> None:
    message = refused(lc.Pruning(0.9, schedule=RAMP), lc.Pruning(0.5, targets=lc.Targets(include=("fc",))))
    assert "'fc.weight' is masked by two callbacks" in message


def test_two_callbacks_with_the_same_targets() -> None:
    # Lightning itself refuses two callbacks with one state key.
    with pytest.raises((ValueError, RuntimeError), match=r"two callbacks|state_key"):
        fit(lc.Pruning(0.9), lc.Fixed(), lc.Pruning(0.5))


def test_layer_masked_by_torch() -> None:
    model = Net()
    prune.l1_unstructured(model.conv2, "weight", 0.5)
    assert "'conv2' has a mask of torch.nn.utils.prune" in refused(lc.Pruning(0.9), model=model)


def test_parametrized_layer() -> None:
    model = Net()
    parametrizations.weight_norm(model.fc)
    assert "'fc' is parametrized" in refused(lc.Pruning(0.9), model=model)


def test_parametrized_layer_that_is_excluded_is_fine() -> None:
    model = Net()
    parametrizations.weight_norm(model.fc)
    fit(lc.Pruning(0.9, targets=lc.Targets(exclude=("fc",))), model=model)


def test_lazy_layer() -> None:
    class Lazy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.LazyLinear(4)

    with pytest.raises(ValueError, match="'fc' is lazy"):
        fit(lc.Pruning(0.9), model=Lazy())


def test_weight_that_no_optimizer_holds() -> None:
    class Partial(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([*self.conv1.parameters(), *self.fc.parameters()], lr=0.1)

    assert "No optimizer holds 'conv2.weight'" in refused(lc.Pruning(0.9), model=Partial())


def test_no_zeros_to_fix() -> None:
    assert "finds no zeros" in refused(lc.Fixed())


@pytest.mark.parametrize("callback", [lc.Pruning(0.9), lc.Fixed()], ids=["Pruning", "Fixed"])
def test_fsdp1_is_refused_with_the_alternative(callback: Callback) -> None:
    strategy = FSDPStrategy(accelerator=None, parallel_devices=[torch.device("cpu")])
    run = trainer([callback])
    run.strategy.__class__ = type(strategy)  # a CPU run cannot select it
    with pytest.raises(ValueError, match=r"does not support FSDPStrategy.*ModelParallelStrategy"):
        callback.setup(run, Net(), "fit")


def test_deepspeed_is_refused_by_name() -> None:
    class DeepSpeedStrategy:
        pass

    run = trainer([callback := lc.Pruning(0.9)])
    run._accelerator_connector.strategy = DeepSpeedStrategy()
    with pytest.raises(ValueError, match="does not support DeepSpeedStrategy"):
        callback.setup(run, Net(), "fit")


@pytest.mark.parametrize("technique", [lambda: lc.Pruning(0.9, schedule=RAMP), lambda: lc.Fixed()])
@pytest.mark.parametrize("change", ["name", "shape", "missing"])
def test_checkpoint_of_another_model(change: str, technique: Any, tmp_path: Path) -> None:
    run(case("cubic"), None, save_every_step(tmp_path))
    other = Net()
    if change == "name":
        other.classifier = nn.Linear(2, 2)
    elif change == "missing":
        other.fc = nn.Identity()
    else:
        other.fc = nn.Linear(8, 5)
    shapes = r"has shape \([\d, ]+\) in the checkpoint and \([\d, ]+\) in the model"
    difference = shapes if change == "shape" else "is only in the (checkpoint|model)"
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(ValueError, match=rf"is of another model: '(classifier|fc)\.(weight|bias)' {difference}\.$"):
        trainer([technique()]).fit(other, Loader(), ckpt_path=tmp_path / "step=3.ckpt")
    assert_same(dict(other.state_dict()), before)


def test_a_part_of_the_weights_may_be_loaded_once_the_fit_has_begun() -> None:
    class Loads(Net):
        def on_train_epoch_start(self) -> None:
            self.load_state_dict({"fc.bias": torch.ones(4)}, strict=False)

    fit(lc.Pruning(0.9, schedule=RAMP), model=Loads())


def test_a_part_of_the_weights_may_be_loaded_after_a_fit_that_failed_early() -> None:
    class Fails(Net):
        def configure_optimizers(self) -> Any:
            raise RuntimeError("no optimizer")

    with pytest.raises(RuntimeError, match="no optimizer"):
        fit(lc.Pruning(0.9, schedule=RAMP), model=(model := Fails()))
    model.load_state_dict({"fc.bias": torch.ones(4)}, strict=False)


def test_checkpoint_with_masks_of_other_targets(tmp_path: Path) -> None:
    run(case("cubic"), None, save_every_step(tmp_path))

    class Wide(Net):
        def setup(self, stage: str) -> None:
            self.fc = nn.Linear(8, 5)

    with pytest.raises((ValueError, RuntimeError), match="fc"):
        trainer([lc.Pruning(0.9, schedule=RAMP)]).fit(Wide(), Loader(), ckpt_path=tmp_path / "step=3.ckpt")


def test_options_that_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="growth and rewind exclude each other"):
        lc.Pruning(0.9, growth=lc.SET(), rewind=lc.RewindWeights())
    with pytest.raises(ValueError, match="scope='local' is unknown"):
        lc.Pruning(0.9, scope="local")
    with pytest.raises(ValueError, match="recalibrate=0"):
        lc.Pruning(0.9, recalibrate=0)


def test_string_in_place_of_globs() -> None:
    with pytest.raises(ValueError, match=r"write include=\('conv1',\)"):
        lc.Targets(include="conv1")


def test_recalibration_needs_a_loader_it_can_sample() -> None:
    class Stream:
        def __iter__(self) -> Any:
            return iter(Loader())

    model = Net()
    run = trainer(
        [lc.Pruning(0.9, schedule=lc.Schedule(begin=3, end=6, every=2), recalibrate=1)], max_steps=10, max_epochs=-1
    )
    with pytest.raises(ValueError, match="recalibrate needs a training DataLoader over a map-style dataset"):
        run.fit(model, Stream())
    assert torch.equal(model.conv1.weight, Net().conv1.weight), "refused before the first step"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scope": "layer"},
        {"pattern": lc.NM(2, 4)},
        {"pattern": lc.Block((2, 2))},
        {"score": lc.LAMP()},
        {"score": lc.Random()},
        {"distribution": lc.ERK()},
        {"growth": lc.SET()},
    ],
    ids=str,
)
def test_weights_that_are_not_finite_are_not_ranked(options: dict[str, Any], value: float) -> None:
    model = Net()
    model.conv2.weight.data[0, 0, 0] = value
    before = model.fc.weight.detach().clone()
    with pytest.raises(
        ValueError, match=r"'conv2\.weight' has weights that are NaN or infinite, which cannot be ranked"
    ):
        fit(lc.Pruning(0.5, targets=lc.Targets(exclude=("conv1",)), **options), model=model)
    assert torch.equal(model.fc.weight, before)
