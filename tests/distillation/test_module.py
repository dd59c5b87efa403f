"""A student with a teacher: who is trained, what is saved, and that everything else stays as it was."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, StochasticWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, default_collate

import lightning_compress as lc
from tests.cases import (
    LOSSES,
    NUM_STEPS,
    Case,
    Loader,
    Net,
    assert_same,
    case,
    dataset,
    load,
    num_zeros,
    save_every_step,
    trainer,
    val_loader,
)

WEIGHTS = ("student.conv1.weight", "student.conv2.weight", "student.fc.weight")
HINTS = LOSSES["hints"]["hints"]
every_loss = pytest.mark.parametrize("losses", LOSSES.values(), ids=list(LOSSES))


def teacher(seed: int = 7) -> nn.Sequential:
    """A wider network for the same images, with norms and dropout that would notice a wrong mode."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(4, 12, 3, padding=1),
            nn.BatchNorm2d(12),
            nn.Conv2d(12, 6, 3, padding=1, stride=2),
            nn.Dropout(0.5),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            nn.Linear(6, 4),
        )
        net[1].running_mean.normal_()  # type: ignore[union-attr, operator]
    return net


def distil(losses: Mapping[str, Any] | None = None, **options: Any) -> lc.DistillationModule:
    return lc.DistillationModule(Net(), teacher(), losses=losses, **options)


def fit(module: LightningModule, *callbacks: Callback, ckpt_path: Path | None = None, **options: Any) -> Trainer:
    run = trainer(list(callbacks), **options)
    run.fit(module, Loader(), val_loader(), ckpt_path=ckpt_path)
    return run


class Meddler(Callback):
    """Puts everything that it gets hold of into training mode."""

    def on_train_batch_start(self, run: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        run.model.train()
        module.train()
        module.teacher.train()  # type: ignore[union-attr, operator]


@every_loss
def test_the_teacher_is_only_evaluated(losses: dict[str, Any]) -> None:
    module = distil(losses)
    before = copy.deepcopy(module.teacher.state_dict())
    run = fit(module, Meddler())
    assert_same(dict(module.teacher.state_dict()), dict(before))
    theirs = {id(p) for p in module.teacher.parameters()}
    assert not any(p.requires_grad or p.grad is not None for p in module.teacher.parameters())
    assert not theirs & {id(p) for p in module.parameters()}
    assert not theirs & {id(p) for o in run.optimizers for g in o.param_groups for p in g["params"]}
    assert not any(module.teacher is m for m in module.modules())


def test_the_callers_networks_stay() -> None:
    net = teacher()
    before = copy.deepcopy(net.state_dict())
    module = lc.DistillationModule(Net(), net)
    fit(module)
    assert net.training
    assert all(p.requires_grad for p in net.parameters())
    assert_same(dict(net.state_dict()), dict(before))


def test_a_network_can_teach_itself() -> None:
    net = Net()
    module = lc.DistillationModule(net, net)
    start = copy.deepcopy(net.state_dict())
    fit(module)
    assert_same(dict(module.teacher.state_dict()), dict(start))
    assert not torch.equal(net.conv1.weight, start["conv1.weight"])


class Gradients(Callback):
    """Keeps the student's gradients of the first step."""

    def on_before_optimizer_step(self, run: Trainer, module: LightningModule, optimizer: Any) -> None:
        if not hasattr(self, "found"):
            self.found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_the_loss_is_the_weighted_sum() -> None:
    seen = Gradients()
    fit(distil({"kd": lc.KD(temperature=2.0, weight=0.7)}, task_weight=0.3), seen)
    student, net = Net(), teacher().eval()
    images, classes = next(iter(Loader()))
    logits, target = student(images), net(images)
    kd = 4 * nn.functional.kl_div(
        (logits / 2).log_softmax(1), (target / 2).log_softmax(1), log_target=True, reduction="batchmean"
    )
    (0.3 * nn.functional.cross_entropy(logits, classes) + 0.7 * kd).backward()
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(seen.found[f"student.{name}"], parameter.grad)


@pytest.mark.parametrize("loss", [loss for losses in LOSSES.values() for loss in losses.values()], ids=repr)
def test_every_loss_reaches_the_student(loss: Any) -> None:
    seen = Gradients()
    fit(distil({"alone": replace(loss, weight=1.0)}, task_weight=0.0), seen)
    assert seen.found["student.conv1.weight"].abs().max() > 0
    adapters = [gradient for name, gradient in seen.found.items() if name.startswith("objective.")]
    assert all(gradient.abs().max() > 0 for gradient in adapters)
    assert bool(adapters) == isinstance(loss, (lc.FitNet, lc.CRD))


def test_weights_follow_their_schedules() -> None:
    class Weights(Callback):
        def __init__(self) -> None:
            self.found: list[float] = []

        def on_train_batch_end(self, run: Trainer, module: LightningModule, outputs: Any, *args: Any) -> None:
            task, kd = run.callback_metrics["train/task"], run.callback_metrics["train/kd"]
            self.found.append(float((outputs["loss"] - task) / kd))

    class Student(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            loss = super().training_step(batch, batch_idx)
            self.log("train/task", loss.detach())
            return loss

    weights = Weights()
    fading = lc.Ramp(1.0, 0.0, lc.Schedule(begin=0.2, end=0.8, curve="linear"))
    fit(lc.DistillationModule(Student(), teacher(), losses={"kd": lc.KD(weight=fading)}), weights)
    expected = [1, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6, 0, 0]
    assert weights.found == pytest.approx(expected, abs=1e-4)


@every_loss
def test_resumed_run_equals_uninterrupted(losses: dict[str, Any], tmp_path: Path) -> None:
    whole = distil(losses)
    fit(whole, save_every_step(tmp_path))
    for step in (1, 4, 5, 8):
        torch.manual_seed(step)
        resumed = distil(losses)
        fit(resumed, save_every_step(tmp_path / f"{step}"), ckpt_path=tmp_path / f"step={step}.ckpt")
        ours, theirs = (load(path / f"step={NUM_STEPS}.ckpt") for path in (tmp_path / f"{step}", tmp_path))
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "distillation"):
            assert_same(ours[key], theirs[key], f"after step {step}: ")


COMBINED = (
    "cubic",
    "rigl",
    "snip",
    "recalibrate",
    "prune_and_cluster",
    "dkm",
    "qat_learned",
    "prune_and_cluster_and_qat",
)


@pytest.mark.parametrize("name", COMBINED)
def test_techniques_work_on_the_student_alone(name: str, tmp_path: Path) -> None:
    technique = case(name)
    module = distil(LOSSES["contrast"])
    technique.prepare(module)
    fit(module, save_every_step(tmp_path), *technique.callbacks())
    check(technique, module)
    resumed = distil(LOSSES["contrast"])
    fit(resumed, *technique.callbacks(), ckpt_path=tmp_path / "step=6.ckpt")
    assert_same(dict(resumed.state_dict()), dict(module.state_dict()))


def check(technique: Case, module: lc.DistillationModule) -> None:
    if technique.zeros:
        assert abs(num_zeros(module.student) - technique.zeros) <= technique.within
    if technique.values:
        assert all(len(module.get_parameter(name).unique()) <= technique.values for name in WEIGHTS)
    if technique.quantizes:
        assert any("quant_" in name for name in module.student.state_dict())
    for name, parameter in module.objective.named_parameters():
        assert "quant_" not in name
        assert not (parameter == 0).any() or parameter.ndim == 1
        assert len(parameter.unique()) > 16 or parameter.ndim == 1


def test_the_quantized_student_is_exported_alone(tmp_path: Path) -> None:
    module = distil()
    fit(module, lc.QuantizationAwareTraining())
    file = lc.export_onnx(lc.finalize(module, module="student"), tmp_path / "student.onnx", dataset(2).tensors[0])
    assert max(file.parity.steps.values()) <= 1


AVERAGES: dict[str, Callable[[], Callback]] = {
    "ema": lambda: EMAWeightAveraging(decay=0.5),
    "swa": lambda: StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1, annealing_epochs=1),
}


@pytest.mark.parametrize("average", list(AVERAGES))
def test_averages_are_of_the_student(average: str, tmp_path: Path) -> None:
    module = distil(LOSSES["hints"])
    before = copy.deepcopy(module.teacher.state_dict())
    fit(module, AVERAGES[average](), lc.Pruning(0.9, schedule=lc.Schedule(end=6)), save_every_step(tmp_path))
    assert num_zeros(module.student) == 346
    assert_same(dict(module.teacher.state_dict()), dict(before))
    assert absent(module.teacher, (tmp_path / f"step={NUM_STEPS}.ckpt").read_bytes())


@pytest.mark.parametrize("how", ["network", "module"])
def test_compiled(how: str) -> None:
    losses = {"kd": lc.KD(), "hints": HINTS}
    plain, compiled = distil(losses), distil(losses)
    torch.manual_seed(0)
    fit(plain)
    torch.manual_seed(0)
    if how == "network":
        compiled.student.conv1.compile(backend="aot_eager")
        compiled.student.norm2.compile(backend="aot_eager")
        fit(compiled)
    else:
        fit(torch.compile(compiled, backend="aot_eager"))  # type: ignore[arg-type]
    assert_same(dict(compiled.state_dict()), dict(plain.state_dict()))


@pytest.mark.parametrize(
    "options", [{"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2}, {"precision": "64-true"}]
)
def test_options_of_the_trainer(options: dict[str, Any]) -> None:
    module = distil(LOSSES["contrast"])
    run = fit(module, **options)
    assert all(torch.isfinite(p).all() for p in module.parameters())
    assert {"train/crd", "train/dkd", "val_loss", "teacher/val_acc"} <= set(run.callback_metrics)


def test_copies_and_pickles() -> None:
    module = distil(LOSSES["hints"])
    fit(module)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_same(dict(other.state_dict()), dict(module.state_dict()))
        fit(other)
        assert not torch.equal(other.student.fc.weight, module.student.fc.weight)
        assert other.validation_step.__self__ is other.student
    assert copy.deepcopy(module).teacher is module.teacher


def absent(network: nn.Module, written: bytes) -> bool:
    """Whether none of a network's larger tensors is in what was written."""
    tensors = [t for t in network.state_dict().values() if len(t.unique()) >= 12]
    assert len(tensors) >= 2
    return not any(t.contiguous().numpy().tobytes()[:48] in written for t in tensors)


@every_loss
def test_no_checkpoint_has_the_teacher(losses: dict[str, Any], tmp_path: Path) -> None:
    module = distil(losses)
    run = fit(module, save_every_step(tmp_path), ModelCheckpoint(tmp_path, filename="weights", save_weights_only=True))
    run.save_checkpoint(tmp_path / "by_hand.ckpt")
    for name in (f"step={NUM_STEPS}.ckpt", "weights.ckpt", "by_hand.ckpt"):
        written = (tmp_path / name).read_bytes()
        assert absent(module.teacher, written)
        assert not absent(module.student, written), "the search finds nothing at all"
        assert all(key.startswith(("student.", "objective.adapters.")) for key in load(tmp_path / name)["state_dict"])
    packed = lc.save_packed(lc.finalize(module, module="student"), tmp_path / "model.packed")
    assert set(lc.load_packed(tmp_path / "model.packed")) == set(module.student.state_dict())
    assert packed.num_bytes > 0
    assert sum(p.numel() for p in module.parameters()) == sum(
        p.numel() for part in (module.student, module.objective) for p in part.parameters()
    )


def test_another_teacher_is_refused_on_resume(tmp_path: Path) -> None:
    fit(distil(), save_every_step(tmp_path))
    changed = teacher()
    changed[0].weight.data[0, 0, 0, 0] += 1e-3
    with pytest.raises(ValueError, match=r"student was distilled from 'Sequential' .* give it the same weights"):
        fit(lc.DistillationModule(Net(), changed), ckpt_path=tmp_path / "step=4.ckpt")


@pytest.mark.parametrize("change", ["missing", "extra"])
def test_keys_of_the_student_are_checked(change: str, tmp_path: Path) -> None:
    fit(distil(LOSSES["hints"]), save_every_step(tmp_path))
    checkpoint = load(tmp_path / "step=4.ckpt")
    weight = checkpoint["state_dict"].pop("student.fc.bias")
    if change == "extra":
        checkpoint["state_dict"] |= {"student.fc.bias": weight, "student.other": weight}
    torch.save(checkpoint, tmp_path / "changed.ckpt")
    with pytest.raises(RuntimeError, match="student.fc.bias" if change == "missing" else "student.other"):
        fit(distil(LOSSES["hints"]), ckpt_path=tmp_path / "changed.ckpt")


def test_evaluation_by_checkpoint(tmp_path: Path) -> None:
    run = fit(distil(LOSSES["hints"]), save_every_step(tmp_path))
    last = tmp_path / f"step={NUM_STEPS}.ckpt"
    again = trainer([]).validate(distil(LOSSES["hints"]), val_loader(), ckpt_path=last)[0]
    assert again["val_loss"] == float(run.callback_metrics["val_loss"])
    without = lc.DistillationModule(Net(), losses=LOSSES["hints"])
    assert trainer([]).validate(without, val_loader(), ckpt_path=last)[0] == again
    alone = Net()
    state = load(last)["state_dict"]
    alone.load_state_dict({k.removeprefix("student."): v for k, v in state.items() if k.startswith("student.")})
    assert trainer([]).validate(alone, val_loader())[0] == again


class TestByName:
    """Students and teachers that are told by name are built again from the checkpoint."""

    @pytest.fixture
    def files(self, tmp_path: Path) -> Path:
        torch.save(lc.ClassificationModule("conv4", 4, model_kwargs=SMALL).model.state_dict(), tmp_path / "conv4.pt")
        return tmp_path

    @staticmethod
    def module(files: Path, **options: Any) -> lc.DistillationModule:
        taught_by = lc.Teacher("conv4", checkpoint=str(files / "conv4.pt"), model_kwargs=SMALL)
        hints = lc.FitNet((("features.0", "features.2"),))
        losses = {"kd": lc.KD(), "hints": hints}
        return lc.DistillationModule(
            "conv4", taught_by, losses=losses, num_classes=4, model_kwargs=SMALL, optimizer=adam, **options
        )

    def test_fit_and_load(self, files: Path) -> None:
        module = self.module(files)
        run = fit(module, save_every_step(files))
        assert {"val/acc", "train/loss", "train/kd", "teacher/val_acc"} <= set(run.callback_metrics)
        loaded = lc.DistillationModule.load_from_checkpoint(files / f"step={NUM_STEPS}.ckpt", weights_only=True)
        assert_same(dict(loaded.state_dict()), dict(module.state_dict()))
        assert loaded.objective.feature_losses == module.objective.feature_losses
        images = dataset(3).tensors[0]
        assert torch.equal(loaded.eval()(images), module.eval()(images))

    def test_students_weights_start_another_module(self, files: Path) -> None:
        module = self.module(files)
        fit(module, save_every_step(files))
        last = str(files / f"step={NUM_STEPS}.ckpt")
        plain = lc.ClassificationModule("conv4", 4, model_kwargs=SMALL, checkpoint=last)
        assert_same(dict(plain.model.state_dict()), dict(module.student.model.state_dict()))

    def test_teacher_file_is_not_needed_to_load(self, files: Path) -> None:
        fit(self.module(files), save_every_step(files))
        (files / "conv4.pt").unlink()
        loaded = lc.DistillationModule.load_from_checkpoint(files / f"step={NUM_STEPS}.ckpt")
        trainer([]).validate(loaded, val_loader())
        with pytest.raises(ValueError, match=r"conv4\.pt' does not exist"):
            fit(loaded)


SMALL = {"in_chans": 4, "img_size": 5}


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, lr=1e-3)


def test_teachers_accuracy_is_told() -> None:
    with pytest.warns(UserWarning, match="The teacher 'Answers' has an accuracy of 25.0% on the validation samples"):
        fit(lc.DistillationModule(Net(), Answers(1)))


def test_no_validation_data() -> None:
    run = trainer([])
    run.fit(distil(), Loader(), [])
    assert "teacher/val_acc" not in run.callback_metrics


class Answers(nn.Module):
    """Knows the answers to some images by heart."""

    def __init__(self, right: int) -> None:
        super().__init__()
        images, classes = next(iter(val_loader()))
        self.register_buffer("answers", nn.functional.one_hot(classes, 4).float())
        self.answers[right:] = self.answers[right:].roll(1, 1)
        self.register_buffer("images", images)
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        same = (x[:, None] - self.images[None]).flatten(2).abs().sum(2).argmin(1)
        return self.answers[same] + self.weight


def test_accuracy_counts_right_answers() -> None:
    size = len(next(iter(val_loader()))[1])
    run = trainer([], limit_val_batches=1)
    run.fit(lc.DistillationModule(Net(), Answers(size - 1)), Loader(), val_loader())
    assert float(run.callback_metrics["teacher/val_acc"]) == pytest.approx((size - 1) / size)


@pytest.mark.parametrize("workers", [0, 2])
def test_cache_changes_nothing_but_how_often_the_teacher_runs(workers: int, tmp_path: Path) -> None:
    calls: list[int] = []

    def run(cache: Path | None) -> dict[str, Tensor]:
        module = lc.DistillationModule(Net(), teacher(), cache=cache)
        module.teacher.register_forward_hook(lambda net, args, out: calls.append(len(args[0])))
        torch.manual_seed(1)
        data = DataLoader(lc.Keyed(dataset(), num_views=2), 4, shuffle=True, num_workers=workers)
        trainer([], max_epochs=4).fit(module, data)
        return dict(module.state_dict())

    plain = run(None)
    computed, calls[:] = sum(calls), []
    first = run(tmp_path)
    filled, calls[:] = sum(calls), []
    second = run(tmp_path)
    assert_same(first, second)
    for name in plain:
        torch.testing.assert_close(first[name], plain[name], rtol=1e-5, atol=1e-6)
    dry_run = 4
    assert computed == 4 * len(dataset()) + dry_run
    assert len(dataset()) + dry_run <= filled <= 2 * len(dataset()) + dry_run
    assert sum(calls) == dry_run


class MLP(LightningModule):
    """Calls its network directly, and does not define forward."""

    def __init__(self, extra: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(100, 4))
        if extra:
            self.other = nn.Linear(4, 4)

    def training_step(self, batch: Any) -> Tensor:
        logits = self.net(batch[0])
        return nn.functional.cross_entropy(self.other(logits) if hasattr(self, "other") else logits, batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.net.parameters(), lr=0.1)


def test_a_student_without_forward() -> None:
    module = lc.DistillationModule(MLP(), teacher())
    before = module.student.net[1].weight.clone()
    run = trainer([])
    run.fit(module, Loader())
    assert "train/kd" in run.callback_metrics
    assert not torch.equal(module.student.net[1].weight, before)


class Named(MLP):
    """Takes batches whose parts have names."""

    def training_step(self, batch: Any) -> Tensor:
        return super().training_step((batch["image"], batch["label"]))

    def validation_step(self, batch: Any) -> None:
        self.log("val/loss", Named.training_step(self, batch))


def test_batches_that_are_dicts() -> None:
    def named(samples: Any) -> dict[str, Tensor]:
        images, classes = default_collate(samples)
        return {"image": images, "label": classes}

    batches = DataLoader(dataset(), 8, collate_fn=named)
    module = lc.DistillationModule(Named(), teacher(), losses={"dkd": lc.DKD()})
    run = trainer([])
    run.fit(module, batches, batches)
    assert run.callback_metrics["train/dkd"] > 0
    assert "val/loss" in run.callback_metrics


def refused(module: lc.DistillationModule) -> str:
    before = {name: tensor.clone() for name, tensor in module.student.state_dict().items()}
    with pytest.raises(ValueError, match=r".*") as caught:
        trainer([]).fit(module, Loader())
    assert_same(dict(module.student.state_dict()), before)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_several_modules_may_return_logits() -> None:
    message = refused(lc.DistillationModule(MLP(extra=True), teacher()))
    assert "training_step calls 'net', 'other': name the one that returns the logits with output=" in message
    trainer([]).fit(lc.DistillationModule(MLP(extra=True), teacher(), output="net"), Loader())


def test_adapters_that_no_optimizer_has() -> None:
    losses = {"hints": lc.FitNet((("net.1", "5"), ("net.0", "2")))}
    assert "The adapter 'hints_1.map.weight' is in no optimizer" in refused(
        lc.DistillationModule(MLP(), teacher(), losses=losses)
    )


def test_other_classes() -> None:
    net = teacher()
    net[5] = nn.Linear(6, 3)
    message = refused(lc.DistillationModule(Net(), net))
    assert "logits of shape (8, 4) and the teacher of shape (8, 3)" in message
    trainer([]).fit(lc.DistillationModule(Net(), net, losses={"hints": HINTS}), Loader())


def test_parameters_without_gradient_are_named() -> None:
    class Headless(Net):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch[0]).sum().detach()

    with pytest.warns(UserWarning, match=r"does not depend on 'norm2.weight', .*'fc.bias' of the student"):
        trainer([]).fit(lc.DistillationModule(Headless(), teacher(), losses={"hints": HINTS}), Loader())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: distil({"hints": lc.FitNet((("conv9", "1"),))}), "student has no module 'conv9'"),
        (lambda: distil({"hints": lc.FitNet((("conv1", "9"),))}), "teacher has no module '9'"),
        (lambda: lc.DistillationModule(Net(), teacher(), losses={"a.b": lc.KD()}), "'a.b' must be a name without dots"),
        (lambda: lc.DistillationModule(Net(), teacher(), losses={"kd": 1.0}), "must be a loss such as lc.KD"),  # type: ignore[dict-item]
        (lambda: lc.DistillationModule(Net(), teacher(), combine="max"), "combine='max' is not supported"),  # type: ignore[arg-type]
        (lambda: lc.DistillationModule(Net(), teacher(), output="head"), "no module 'head'"),
        (lambda: lc.DistillationModule(Net(), 3), "teacher=3 is not supported"),  # type: ignore[arg-type]
        (lambda: lc.DistillationModule("resnet20_cifr", teacher(), num_classes=4), "did you mean 'resnet20_cifar'"),
        (lambda: lc.DistillationModule("conv4", nn.Conv2d(3, 4, 1)), "give num_classes"),
        (lambda: lc.DistillationModule(Net(), teacher(), losses={"hints": HINTS}, cache="here"), "stores logits only"),
        (lambda: lc.DistillationModule("missing.ckpt", teacher()), "student='missing.ckpt' is not a checkpoint"),
    ],
)  # fmt: skip
def test_what_cannot_be_built(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=r".*") as caught:
        make()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_fit_needs_a_teacher() -> None:
    assert "has no teacher: pass teacher=" in refused(lc.DistillationModule(Net()))


def test_manual_optimization_is_refused() -> None:
    student = Net()
    student.automatic_optimization = False
    with pytest.raises(ValueError, match="uses manual optimization"):
        lc.DistillationModule(student, teacher())


def test_cache_needs_keys(tmp_path: Path) -> None:
    assert "wrap the training dataset as lc.Keyed" in refused(lc.DistillationModule(Net(), teacher(), cache=tmp_path))


def peer() -> nn.Sequential:
    """A teacher that can be trained along; without dropout, whose noise no checkpoint holds."""
    net = teacher()
    net[3] = nn.Identity()
    return net


LEARNING: dict[str, Callable[[], Any]] = {
    "mean": lambda: lc.MeanTeacher(decay=0.9),
    "peer": lambda: lc.Peer(peer()),
    "both": lambda: [lc.Peer(peer()), lc.MeanTeacher(), teacher(2)],
}


@pytest.mark.parametrize("taught", LEARNING.values(), ids=list(LEARNING))
def test_teachers_that_learn_resume(taught: Callable[[], Any], tmp_path: Path) -> None:
    def build() -> lc.DistillationModule:
        return lc.DistillationModule(Net(), taught(), losses={"kd": lc.KD(weight=0.5)})

    whole = build()
    fit(whole, save_every_step(tmp_path), lc.Pruning(0.9, schedule=lc.Schedule(end=6)))
    for step in (1, 5, 7):
        torch.manual_seed(step)
        resumed = build()
        fit(resumed, lc.Pruning(0.9, schedule=lc.Schedule(end=6)), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert_same(dict(resumed.state_dict()), dict(whole.state_dict()))
        for ours, theirs in zip(resumed._teachers.built, whole._teachers.built, strict=True):
            assert_same(ours.state_dict(), theirs.state_dict())
    assert num_zeros(whole.student) == 346
    assert all(name.startswith("student.") for name in whole.state_dict())


def test_a_mean_teacher_is_the_average_of_the_student() -> None:
    class Mean(Callback):
        """The same average, by its formula."""

        def on_fit_start(self, run: Trainer, module: LightningModule) -> None:
            self.mean = module.student.fc.weight.detach().clone()
            self.step = 0

        def on_train_batch_end(self, run: Trainer, module: LightningModule, *args: Any) -> None:
            self.step += 1
            decay = min(0.3, (1 + self.step) / (10 + self.step))
            self.mean = decay * self.mean + (1 - decay) * module.student.fc.weight.detach()

    mean = Mean()
    module = lc.DistillationModule(Net(), lc.MeanTeacher(decay=0.3))
    fit(module, mean)
    torch.testing.assert_close(module.teacher.fc.weight, mean.mean)
    assert torch.equal(module.teacher.norm1.running_mean, module.student.norm1.running_mean)
    assert not module.teacher.training


@pytest.mark.parametrize("batches", [1, 2])
def test_peers_learn_from_each_other(batches: int) -> None:
    other, student = peer(), Net()
    module = lc.DistillationModule(student, lc.Peer(other), losses={"kd": lc.KD(temperature=1.0, weight=0.5)})
    fit(module, max_epochs=1, accumulate_grad_batches=batches, limit_train_batches=2 * batches)
    alone = Net()
    ours, theirs = alone.configure_optimizers(), torch.optim.SGD(other.parameters(), **OPTIONS)
    for number, (images, classes) in zip(range(2 * batches), Loader(), strict=False):
        here, there = alone(images), other(images)
        for mine, said in ((here, there), (there, here)):
            kd = nn.functional.kl_div(
                mine.log_softmax(1), said.detach().log_softmax(1), log_target=True, reduction="batchmean"
            )
            loss = nn.functional.cross_entropy(mine, classes) + 0.5 * kd
            (loss / (batches if mine is here else 1)).backward()
        if number % batches == batches - 1:
            ours["optimizer"].step()
            theirs.step()
            ours["optimizer"].zero_grad()
            theirs.zero_grad()
    for name, parameter in other.named_parameters():
        torch.testing.assert_close(module.teacher.get_parameter(name), parameter)
    for name, parameter in alone.named_parameters():
        torch.testing.assert_close(student.get_parameter(name), parameter)


OPTIONS = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}


def test_several_teachers() -> None:
    one, two = teacher(1), teacher(2)
    module = lc.DistillationModule(Net(), [one, lc.Teacher(two)], combine="confidence")
    run = fit(module)
    assert {"teacher/val_acc", "teacher/val_acc_1"} <= set(run.callback_metrics)
    assert len(module._teachers.built) == 2


@pytest.mark.parametrize(
    ("schedule", "named"),
    [(lc.Schedule(begin="3ep", end="4ep"), "begin='3ep'"), (lc.Schedule(begin=0.0, end="3ep"), "end='3ep'")],
)
def test_times_of_ramps_lie_within_the_run(schedule: lc.Schedule, named: str) -> None:
    ramp = lc.Ramp(0.0, 1.0, schedule=schedule)
    for options in ({"losses": {"kd": lc.KD(weight=ramp)}}, {"losses": {"kd": lc.KD()}, "task_weight": ramp}):
        with pytest.raises(ValueError, match=f"^{named} lies beyond the run's 2 epochs"):
            fit(lc.DistillationModule(Net(), teacher(), **options))


def test_accuracy_of_the_teacher_is_not_measured_again_at_a_resume(tmp_path: Path) -> None:
    fit(distil(), save_every_step(tmp_path))
    for path, is_measured in ((None, True), (tmp_path / "step=3.ckpt", False)):
        run = trainer([])
        run.fit(distil(), Loader(), val_loader(), ckpt_path=path)
        assert ("teacher/val_acc" in run.callback_metrics) == is_measured
