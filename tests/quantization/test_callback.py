"""When a QuantizationAwareTraining does what, and what it refuses; what holds for every technique is the contracts'."""

from __future__ import annotations

import gc
import itertools
import weakref
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torchmetrics import MeanMetric

import lightning_compress as lc
from lightning_compress.quantization.callback import _freeze_norms
from lightning_compress.quantization.insertion import is_quantized, quantizers_of
from lightning_compress.quantization.quantizer_checkpoint import _insert_stored
from lightning_compress.quantization.quantizer_plan import QuantizerPlan
from lightning_compress.trainer.queries import averaged_models
from tests.cases import (
    MILESTONES,
    Loader,
    Net,
    assert_same,
    dataset,
    is_of_quantizer,
    load,
    plain,
    save_every_step,
    scales_of,
    trainer,
    val_loader,
)
from tests.distributed.jobs import LateNet


def fit(
    model: LightningModule | None = None, *watchers: Callback, options: Any = None, **numbers: Any
) -> LightningModule:
    model = model or Net()
    trainer([*watchers, lc.QuantizationAwareTraining(**numbers)], **(options or {})).fit(model, Loader(), val_loader())
    return model


def places(model: nn.Module) -> set[str]:
    return {attached.name for attached in quantizers_of(model)}


PLACES = {
    "conv1.weight", "conv1.conv2d_input_0", "relu", "conv2.weight", "relu_1", "mean", "fc.weight", "fc.linear",
}  # fmt: skip


def test_places_of_a_plain_net() -> None:
    assert places(fit()) == PLACES


# --- refusals ---------------------------------------------------------------------------------------------------


def test_nothing_to_quantize() -> None:
    for nothing in (None, {"conv1": None}):
        with pytest.raises(ValueError, match="weights and activations are both None"):
            lc.QuantizationAwareTraining(weights=nothing, activations=None)


def test_activations_by_channel() -> None:
    with pytest.raises(ValueError, match="activations share one scale per tensor"):
        lc.QuantizationAwareTraining(activations=lc.Int(8, granularity="channel"))


def refused(message: str, *callbacks: Callback, model: LightningModule | None = None, **options: Any) -> None:
    """A fit is refused before its first step, and the model is plain."""
    model = model or Net()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as caught:
        trainer(list(callbacks), **options).fit(model, Loader())
    assert "\n" not in str(caught.value)
    assert_same(plain(model.state_dict()), before)
    assert not any(hook.hook is _insert_stored for hook in model._load_state_dict_pre_hooks.values())


@pytest.mark.parametrize(
    "average", [lambda: EMAWeightAveraging(decay=0.5), lambda: StochasticWeightAveraging(0.05)], ids=["ema", "swa"]
)
def test_an_average_that_has_copied_the_model_before(average: Any) -> None:
    refused("put QuantizationAwareTraining before it", average(), lc.QuantizationAwareTraining())


def test_two_of_a_kind() -> None:
    one, other = (lc.QuantizationAwareTraining(targets=lc.Targets(include=(name,))) for name in ("conv1", "fc"))
    refused("has two QuantizationAwareTraining callbacks, .* use one, with specifications by globs", one, other)


QUANTIZED: dict[str, dict[str, Any]] = {
    "other bits": {"weights": lc.Int(4)},
    "another observer": {"weights": lc.Int(8, observer=lc.MSE())},
    "another layer's": {"weights": {"fc": lc.Int(4), "*": lc.Int(8)}},
    "floats": {"activations": None},
    "fewer layers": {"targets": lc.Targets(exclude=("conv1",))},
}


@pytest.mark.parametrize("numbers", QUANTIZED.values(), ids=QUANTIZED)
@pytest.mark.parametrize("how", ["fit", "calibrated"])
def test_a_second_fit_with_other_numbers(how: str, numbers: dict[str, Any]) -> None:
    model = fit() if how == "fit" else lc.calibrate(Net(), [torch.randn(8, 4, 5, 5)]).train()
    name = "relu" if "activations" in numbers else "(conv1|fc).weight"
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    required = r"where the callback requires (FP32|Int\(.*\)): pass the same"
    message = rf"quantized already, with Int\(bits=8.*\) at '{name}' {required}"
    with pytest.raises(ValueError, match=message):
        fit(model, **numbers)
    assert_same(dict(model.state_dict()), before)


def test_a_second_fit_of_more_layers() -> None:
    model = fit(targets=lc.Targets(include=("conv1", "conv2")))
    with pytest.raises(ValueError, match=r"with FP32 at .fc\.weight. where the callback requires Int"):
        fit(model)
    begin = lc.float_copy(model).requires_grad_().train()
    assert places(fit(begin)) == PLACES


def test_a_second_fit_goes_on_with_frozen_layers() -> None:
    model = fit()
    model.conv1.requires_grad_(False)
    assert places(fit(model)) == PLACES
    assert not model.conv1.weight.requires_grad


@pytest.mark.parametrize("part", ["", "net"])
def test_a_calibrated_model_is_trained_on(part: str) -> None:
    class Outer(LightningModule):
        def __init__(self, net: nn.Module) -> None:
            super().__init__()
            self.net = nn.Sequential(net, nn.Sigmoid())

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    numbers: dict[str, Any] = {"weights": lc.Int(4), "activations": {"*fc": lc.Int(8), "*": lc.Int(6)}}
    model, images = Outer(Net()), torch.randn(8, 4, 5, 5)
    model.net = lc.calibrate(model.net, [images], **numbers).train()
    calibrated = scales_of(model.state_dict())
    fit(model, targets=lc.Targets(module=part), **numbers)
    assert scales_of(model.state_dict()).keys() == calibrated.keys()
    assert not equal(scales_of(model.state_dict()), calibrated)


def test_synchronized_norms() -> None:
    run = trainer([quantization := lc.QuantizationAwareTraining()], strategy="ddp", sync_batchnorm=True)
    with pytest.raises(ValueError, match="does not support sync_batchnorm=True"):
        quantization.setup(run, Net(), "fit")


def test_norms_that_were_synchronized_by_hand() -> None:
    class Synchronized(Net):
        def __init__(self) -> None:
            super().__init__()
            self.norm2 = nn.SyncBatchNorm.convert_sync_batchnorm(self.norm2)

    message = "does not support synchronized batch norms such as 'norm2', .*: leave them plain"
    refused(message, lc.QuantizationAwareTraining(), model=Synchronized())


GROUPS = lc.Int(4, granularity=3)


@pytest.mark.parametrize(
    ("weights", "what"),
    [({"fc": GROUPS, "*": lc.Int(8)}, r"'fc' is \[4, 8\]"), ({"conv1": GROUPS}, r"'conv1' is \[8, 4, 3, 3\]")],
)
def test_groups_that_a_layer_cannot_be_cut_into(weights: dict[str, lc.Int], what: str) -> None:
    quantization = lc.QuantizationAwareTraining(weights=weights)
    refused(rf"granularity=3.* the weight of {what}: give it granularity='channel'", quantization)


def test_manual_optimization_needs_example_inputs() -> None:
    class Manual(Net):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

    refused(
        "manual optimization cannot be run before the fit: give example_inputs",
        lc.QuantizationAwareTraining(),
        model=Manual(),
    )


def test_example_inputs_that_do_not_fit() -> None:
    wrong = torch.randn(2, 3, 5, 5)
    refused("could not run the model on example inputs", lc.QuantizationAwareTraining(example_inputs=wrong))


def test_globs_and_targets_that_match_nothing() -> None:
    refused("weights: 'head' matches nothing", lc.QuantizationAwareTraining(weights={"head": lc.Int(4)}))
    refused("'head' matches no layer", lc.QuantizationAwareTraining(targets=lc.Targets(include=("head",))))


def test_learned_scales_that_no_optimizer_holds() -> None:
    class Partial(Net):
        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([p for n, p in self.named_parameters() if "quant_" not in n], lr=0.1)

    learned = lc.Int(4, observer=lc.Learned())
    refused("No optimizer holds the learned scale of", lc.QuantizationAwareTraining(weights=learned), model=Partial())


@pytest.mark.parametrize("name", ["observe", "fake_quantize", "freeze_observers", "freeze_batch_norm"])
def test_times_that_the_run_has_not_got(name: str) -> None:
    schedule = lc.QATSchedule(**{name: 11}) if name != "observe" else lc.QATSchedule(11, 12, 13, 14)
    refused(f"{name}=11 lies beyond the run's 10", lc.QuantizationAwareTraining(schedule=schedule))


def test_activations_that_are_not_a_number_are_told_with_their_layer() -> None:
    class Diverges(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm1(self.conv1(x)).relu()
            x = x * float("nan") if self.training and self.trainer.global_step == 3 else x
            return self.fc(self.norm2(self.conv2(x)).relu().mean(dim=(2, 3)))

    with pytest.raises(
        ValueError, match=r"NaN or infinity observed at '\w+(\.\w+)?': check the inputs, and lower"
    ) as caught:
        fit(Diverges())
    assert "\n" not in str(caught.value)
    assert _get_current_function_mode_stack() == []


# --- when ------------------------------------------------------------------------------------------------------


class Watch(Callback):
    """Scales and norms after every training batch and around every other loop."""

    def __init__(self) -> None:
        self.scales: list[dict[str, Tensor]] = []
        self.norms: list[dict[str, Tensor]] = []
        self.rounds: list[bool] = []
        self.before: dict[str, Tensor] = {}
        self.num_loops = 0

    def on_train_batch_start(self, run: Trainer, model: LightningModule, *args: Any) -> None:
        self.rounds.append(
            all(attached.quantizer.quantizing and attached.quantizer.ready for attached in quantizers_of(model))
        )
        self.scales.append(scales_of(model.state_dict()))
        self.norms.append({name: b.clone() for name, b in model.named_buffers() if "running" in name})

    def begin(self, run: Trainer, model: LightningModule) -> None:
        self.before = scales_of(model.state_dict())

    def end(self, run: Trainer, model: LightningModule) -> None:
        assert_same(scales_of(model.state_dict()), self.before)
        assert all(attached.quantizer.observed is None for attached in quantizers_of(model))
        assert not any(buffer.is_inference() for buffer in model.buffers())
        self.num_loops += 1

    on_sanity_check_start = on_validation_start = on_test_start = on_predict_start = begin
    on_sanity_check_end = on_validation_end = on_test_end = on_predict_end = end


@pytest.mark.parametrize("inference_mode", [True, False])
def test_observers_move_on_training_batches_alone(inference_mode: bool) -> None:
    watch, model = Watch(), Net()
    schedule = lc.QATSchedule(freeze_observers=1.0)
    quantization = lc.QuantizationAwareTraining(schedule=schedule)
    run = trainer([quantization, watch], inference_mode=inference_mode, val_check_interval=1)
    run.fit(model, Loader(), val_loader())
    run.validate(model, val_loader())
    run.test(model, val_loader())
    run.predict(model, torch.utils.data.DataLoader(dataset(16), batch_size=8))
    assert watch.num_loops > 10
    moved = [not equal(a, b) for a, b in zip(watch.scales, watch.scales[1:], strict=False)]
    assert all(moved)


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


def activations(scales: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: scale for name, scale in scales.items() if "weight" not in name}


class EagerNet(Net):
    """Puts itself into training mode in every step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.train()
        return super().training_step(batch, batch_idx)


def milestones(watch: Watch) -> None:
    """Observed from step 2 on, rounded from 4 on, frozen ranges from 6 on and frozen norms from 8 on."""
    assert not any(scale.any() for scale in watch.scales[2].values())
    changes = [not equal(activations(b), activations(a)) for a, b in zip(watch.scales, watch.scales[1:], strict=False)]
    assert changes == [False, False, True, True, True, True, False, False, False]
    norms = [not equal(b, a) for a, b in zip(watch.norms, watch.norms[1:], strict=False)]
    assert norms == [True] * 8 + [False]


@pytest.mark.parametrize("model", [Net, EagerNet])
def test_milestones(model: type[Net]) -> None:
    watch = Watch()
    fit(model(), watch, schedule=MILESTONES)
    milestones(watch)


def test_learned_scales_are_those_of_the_weights_when_rounding_begins() -> None:
    class Grows(Watch):
        def on_train_batch_end(self, run: Trainer, model: LightningModule, *args: Any) -> None:
            if run.global_step == 3:
                with torch.no_grad():
                    model.fc.weight.mul_(20)

    learned = lc.Int(4, observer=lc.Learned())
    watch, schedule = Grows(), lc.QATSchedule(observe=2, fake_quantize=6)
    fit(None, watch, weights=learned, activations=learned, schedule=schedule)
    scales = [scale["fc.quant_weight_scale"] for scale in watch.scales]
    assert (scales[6] > 10 * scales[3]).all()
    assert not torch.equal(scales[8], scales[7])
    torch.testing.assert_close(scales[8], scales[6], rtol=0.5, atol=0)


def test_nothing_is_rounded_before_its_time() -> None:
    class Outputs(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.looks.append(torch.equal(self(batch[0]), plain_output(self, batch[0])))
            return super().training_step(batch, batch_idx)

    model = Outputs(frozen_norms=True)
    model.looks = []
    fit(model, schedule=MILESTONES)
    looks = model.looks[-10:]  # the first ones look for places, and for ranges
    assert looks == [True] * 4 + [False] * 6


def plain_output(model: Net, x: Tensor) -> Tensor:
    twin = Net(frozen_norms=True)
    twin.load_state_dict(plain(model.state_dict()))
    return twin(x)


def test_a_resume_past_the_milestones_stays_frozen(tmp_path: Path) -> None:
    fit(None, save_every_step(tmp_path), schedule=MILESTONES)
    watch = Watch()
    run = trainer([watch, lc.QuantizationAwareTraining(schedule=MILESTONES)])
    run.fit(model := EagerNet(), Loader(), ckpt_path=tmp_path / "step=9.ckpt")
    frozen = load(tmp_path / "step=9.ckpt")["state_dict"]
    found = model.state_dict()
    for name, tensor in frozen.items():
        if "running" in name or (is_of_quantizer(name) and "weight" not in name):
            assert torch.equal(found[name], tensor), name


def test_norms_train_again_after_the_fit() -> None:
    model = fit(schedule=MILESTONES)
    assert model.training
    assert model.norm1.training
    never_frozen = lc.calibrate(Net(), [torch.randn(8, 4, 5, 5)]).norm1
    for hooks in ("_forward_pre_hooks", "_forward_hooks"):
        assert [*getattr(model.norm1, hooks).values()] == [*getattr(never_frozen, hooks).values()]
    assert vars(model.norm1).keys() == vars(never_frozen).keys()
    before = model.norm1.running_mean.clone()
    trainer([]).fit(model, Loader())
    assert not torch.equal(model.norm1.running_mean, before)


def test_norms_of_a_second_fit_are_frozen_in_their_time() -> None:
    model, watch = fit(schedule=MILESTONES), Watch()
    fit(model, watch, schedule=MILESTONES)
    norms = [not equal(b, a) for a, b in zip(watch.norms, watch.norms[1:], strict=False)]
    assert norms == [True] * 8 + [False]


def test_norms_that_the_user_keeps_in_eval_mode_stay_there() -> None:
    model = fit(Net(frozen_norms=True), schedule=MILESTONES)
    assert model.training
    assert not model.norm1.training


def test_a_run_counts_as_at_its_target_when_it_rounds() -> None:
    class Reached(Callback):
        def __init__(self) -> None:
            self.values: list[bool] = []

        def on_train_batch_end(self, run: Trainer, *args: Any) -> None:
            self.values.append(quantization.reached)

    quantization, reached = lc.QuantizationAwareTraining(schedule=MILESTONES), Reached()
    trainer([reached, quantization]).fit(Net(), Loader())
    assert reached.values == [False] * 4 + [True] * 6


# --- models ----------------------------------------------------------------------------------------------------


def test_losses_and_metrics_are_not_quantized() -> None:
    class Judged(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.loss, self.mean = nn.CrossEntropyLoss(), MeanMetric()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            outputs = self.net(batch[0])
            loss = self.loss(outputs, batch[1]) + F.relu(outputs).mean() * 0.1 + (outputs + outputs).square().mean()
            self.mean.update(loss.detach())
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    model = fit(Judged())
    assert places(model) == {f"net.{name}" for name in PLACES}


def test_functions_of_the_step_are_not_the_models() -> None:
    class Steps(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            noisy = torch.relu(batch[0]) + batch[0]  # before the model, in the same module
            return F.cross_entropy(self(noisy), batch[1]) + torch.add(self.fc.bias, 1).mean()

    assert places(fit(Steps())) == PLACES


@pytest.mark.parametrize("through", ["forward", "net"])
def test_two_views_in_one_step(through: str) -> None:
    """All calls from a training step are the same: ranges are of all of them, and all are rounded."""

    class Views(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Net()
            self.outputs: list[Tensor] = []

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            call = self if through == "forward" else self.net
            self.outputs = [call(batch[0]), call(batch[0])]
            return F.cross_entropy(self.outputs[0] + self.outputs[1], batch[1])

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    model = fit(Views(), schedule=lc.QATSchedule(freeze_batch_norm=0.0))
    assert places(model) == {f"net.{name}" for name in PLACES}
    assert torch.equal(*model.outputs)
    scale = model.net.fc.quant_linear_scale
    torch.testing.assert_close((model.outputs[1] / scale).round() * scale, model.outputs[1])


def test_excluded_layers_are_unquantized_and_listed() -> None:
    model, quantization = Net(), lc.QuantizationAwareTraining(targets=lc.Targets(exclude=("conv2",)))
    trainer([quantization]).fit(model, Loader())
    assert quantization.unquantized_ops == ["conv2.conv2d", "norm2.batch_norm"]
    assert quantization.left_in_float is quantization.unquantized_ops  # the old name
    assert "conv2.weight" not in places(model)


@pytest.mark.parametrize("zero_init_last", [True, False])
def test_timm_resnet_from_scratch(zero_init_last: bool) -> None:
    class Timm(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = timm.create_model("resnet18", num_classes=2, zero_init_last=zero_init_last)
            self.losses: list[float] = []

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = F.cross_entropy(self.net(batch[0]), batch[1])
            self.losses.append(float(loss))
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)

    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    data = torch.utils.data.TensorDataset(images, torch.tensor([0, 1, 0, 1]))
    model, quantization = Timm(), lc.QuantizationAwareTraining()
    trainer([quantization], max_epochs=1).fit(model, torch.utils.data.DataLoader(data, batch_size=2))
    assert quantization.unquantized_ops == []
    assert sum(attached.quantizer.is_weight for attached in quantizers_of(model)) == 21
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())
    assert all(torch.isfinite(torch.tensor(model.losses)))


def half_precision() -> MixedPrecision:
    """What "16-mixed" is on a GPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))


@pytest.mark.parametrize("options", [{"precision": "bf16-mixed"}, {"plugins": "16-mixed"}], ids=["bf16", "16"])
def test_scales_of_mixed_precision_are_those_of_single(options: dict[str, Any]) -> None:
    if "plugins" in options:
        options = {"plugins": [half_precision()]}
    steps = {"max_steps": 3, "max_epochs": -1}
    single = scales_of(fit(options=steps).state_dict())
    mixed = scales_of(fit(options={**steps, **options}).state_dict())
    for name, scale in single.items():
        assert mixed[name].dtype is torch.float32
        if name.endswith("_scale"):
            torch.testing.assert_close(mixed[name], scale, rtol=1e-2, atol=0)


def test_a_float_checkpoint_may_be_where_training_begins(tmp_path: Path) -> None:
    trainer([save_every_step(tmp_path)]).fit(Net(), Loader())
    model = Net()
    model.load_state_dict(load(tmp_path / "step=10.ckpt")["state_dict"])
    fit(model)
    assert all(attached.quantizer.ready for attached in quantizers_of(model))


def test_a_checkpoint_before_anything_was_seen_loads(tmp_path: Path) -> None:
    fit(None, save_every_step(tmp_path), schedule=MILESTONES)
    run = trainer([lc.QuantizationAwareTraining()])
    run.validate(model := Net(), val_loader(), ckpt_path=tmp_path / "step=1.ckpt")
    assert is_quantized(model)
    assert not any(attached.quantizer.ready for attached in quantizers_of(model))
    run.validate(other := Net(), val_loader(), ckpt_path=tmp_path / "step=5.ckpt")
    assert all(attached.quantizer.ready for attached in quantizers_of(other))
    assert_same(scales_of(other.state_dict()), scales_of(load(tmp_path / "step=5.ckpt")["state_dict"]))


def test_the_search_for_places_leaves_no_trace() -> None:
    class Noisy(Net):
        def __init__(self) -> None:
            super().__init__()
            self.steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.steps += 1
            self.log("loss", 0.0)
            return super().training_step(batch, batch_idx) + 0 * torch.rand(1).sum()

    torch.manual_seed(3)
    fit(model := Noisy(), schedule=lc.QATSchedule(freeze_batch_norm=1.0))
    ours = torch.rand(1)
    torch.manual_seed(3)
    trainer([]).fit(other := Noisy(), Loader(), val_loader())
    assert torch.equal(ours, torch.rand(1))
    assert model.steps == other.steps == 10
    assert torch.equal(model.norm1.num_batches_tracked, other.norm1.num_batches_tracked)


def test_the_callback_does_not_keep_the_model_alive() -> None:
    model, quantization = Net(), lc.QuantizationAwareTraining()
    trainer([quantization]).fit(model, Loader())
    weight = weakref.ref(model.conv1.weight)
    del model, quantization.log, quantization.log_dict  # Lightning's own, bound to the model
    gc.collect()
    assert weight() is None
    assert quantization.state_dict()["steps"] == 10


def test_after_the_fit_only_quantizers_are_left() -> None:
    model = fit()
    assert not any(isinstance(value, QuantizerPlan) for value in vars(model).values())
    assert all(attached.quantizer.observing == 0 for attached in quantizers_of(model))
    assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_a_checkpoint_of_other_bits_is_an_error(stage: str, tmp_path: Path) -> None:
    run = trainer([lc.QuantizationAwareTraining()], max_steps=2)
    run.fit(Net(), Loader())
    run.save_checkpoint(tmp_path / "eight.ckpt")
    four = lc.QuantizationAwareTraining(weights=lc.Int(4), activations=lc.Int(4))
    same = lc.QuantizationAwareTraining(activations=lc.Int(8, observer=lc.MSE()))  # the ranges may be found otherwise
    trainer([same], max_steps=3).fit(Net(), Loader(), ckpt_path=tmp_path / "eight.ckpt")
    with pytest.raises(ValueError, match=r"quantizes '[\w.]+' to 8 bits .* load its weights alone"):
        getattr(trainer([four], max_steps=3), stage)(Net(), Loader(), ckpt_path=tmp_path / "eight.ckpt")


@pytest.mark.parametrize("begin", [0, 4])
def test_averages_are_quantized_with_the_model(begin: int) -> None:
    found: list[list[tuple[bool, bool]]] = []

    class Record(Callback):
        def on_train_batch_end(self, run: Any, model: Any, *args: Any) -> None:
            quantizers = [ref.quantizer for average in averaged_models(run) for ref in quantizers_of(average)]
            found.append([(quantizer.quantizing, quantizer.ready) for quantizer in quantizers])

    schedule = lc.QATSchedule(observe=begin, fake_quantize=begin, freeze_observers=8, freeze_batch_norm=9)
    techniques = [lc.QuantizationAwareTraining(schedule=schedule), EMAWeightAveraging(decay=0.5)]
    trainer([*techniques, Record()]).fit(Net(), Loader())
    assert found[0]
    assert all(state == (False, False) for states in found[:begin] for state in states)
    assert all(state == (True, True) for states in found[begin + 1 :] for state in states)


class Phases(Callback):
    """The phase of the first callback at the end of each batch."""

    def __init__(self) -> None:
        self.phases: list[float] = []

    def on_train_batch_end(self, run: Any, *args: Any) -> None:
        quantization = next(c for c in run.callbacks if isinstance(c, lc.QuantizationAwareTraining))
        self.phases += quantization.fit_metrics().values()
        self.num_changes = quantization.num_changes


@pytest.mark.parametrize("times", [(2, 5, 8), (0.2, 0.5, 0.8)])
def test_phases_follow_the_schedule(times: tuple[Any, Any, Any]) -> None:
    watcher = Phases()
    schedule = lc.QATSchedule(0.0, *times)  # the Trainer has ten steps
    assert lc.QuantizationAwareTraining(schedule=schedule).fit_metrics() == {"quantization_phase": 0.0}
    fit(None, watcher, schedule=schedule, options={"max_steps": 10, "max_epochs": -1})
    assert watcher.phases == [0, 0, 1, 1, 1, 2, 2, 2, 3, 3]
    assert watcher.num_changes == 4


def test_metrics_of_layers_are_bits_scale_and_range() -> None:
    model = fit(weights=lc.Int(4))
    metrics = lc.QuantizationAwareTraining().layer_metrics(model)
    scales = {ref.name: ref.quantizer.qparams(ref.module)[0] for ref in quantizers_of(model)}
    assert set(metrics["bits"]) == set(metrics["scale"]) == set(metrics["range"]) == set(scales) == PLACES
    assert metrics["bits"] == {name: 4.0 if name.endswith(".weight") else 8.0 for name in PLACES}
    for name, scale in scales.items():
        num_steps = 15 if name.endswith(".weight") else 255
        assert metrics["scale"][name] == pytest.approx(float(scale.mean()))
        assert metrics["range"][name] == pytest.approx(float(scale.max()) * num_steps)
    assert len(scales["conv1.weight"].unique()) > 1


def test_a_model_that_is_built_late_lists_what_is_not_quantized() -> None:
    model = LateNet("configure_model", kind="one", dtype=torch.float32)
    quantization = lc.QuantizationAwareTraining(targets=lc.Targets(exclude=("conv2",)))
    trainer([quantization]).fit(model, Loader())
    assert quantization.unquantized_ops == ["conv2.conv2d", "norm2.batch_norm"]


@pytest.mark.parametrize("name", ["fake_quantize", "freeze_observers"])
def test_epochs_past_the_end_are_refused_before_the_first_step(name: str) -> None:
    schedule = lc.QATSchedule(**{"freeze_observers": 1.0, "freeze_batch_norm": 1.0, name: "9ep"})
    with pytest.raises(ValueError, match=f"{name}='9ep' lies beyond"):
        fit(schedule=schedule, options={"max_epochs": 2, "max_steps": -1})


class Ready(Callback):
    """Whether all quantizers have a scale when a batch begins."""

    def __init__(self) -> None:
        self.seen: list[bool] = []

    def on_train_batch_start(self, run: Any, model: Any, *args: Any) -> None:
        self.seen.append(all(ref.quantizer.ready for ref in quantizers_of(model)))


@pytest.mark.parametrize("fake_quantize", [0, 5])
def test_the_first_batch_is_observed_before_the_model_is_trained_on_it(fake_quantize: int) -> None:
    watcher = Ready()
    schedule = lc.QATSchedule(0, fake_quantize, 8, 8)
    trainer([lc.QuantizationAwareTraining(schedule=schedule), watcher]).fit(Net(), Loader())
    assert watcher.seen == [True] * 10


def test_a_frozen_norm_keeps_its_mode_when_a_forward_pass_fails() -> None:
    norm = nn.BatchNorm1d(3)
    handles = _freeze_norms(norm)
    with pytest.raises(ValueError, match="expected 2D or 3D input"):
        norm(torch.ones(3))
    assert norm.training
    norm(torch.ones(2, 3))
    assert not norm.num_batches_tracked
    for handle in handles:
        handle.remove()


def test_scales_of_an_average_are_averaged() -> None:
    scales: list[tuple[float, float]] = []

    def scale_of(model: nn.Module) -> float:
        return next(float(ref.quantizer.scale(ref.module)) for ref in quantizers_of(model) if ref.name == "relu")

    class Record(Callback):
        def on_train_batch_end(self, run: Any, model: Any, *args: Any) -> None:
            scales.append((scale_of(model), *(scale_of(average) for average in averaged_models(run))))

    trainer([lc.QuantizationAwareTraining(), EMAWeightAveraging(decay=0.5), Record()]).fit(Net(), Loader())
    for (_, before), (own, average) in itertools.pairwise(scales):
        assert average == pytest.approx((before + own) / 2, rel=1e-6)
    assert len({own for own, _ in scales}) > 3
