from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.hooks import CheckpointHooks, DataHooks, ModelHooks
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics.classification import MulticlassAccuracy

import lightning_compress as lc
from lightning_compress.distillation import module as distillation
from lightning_compress.distillation.wrapped_module import DelegatedMethod, adopt_hooks
from tests.cases import Net, dataset, trainer

HOOKS = [name for kind in (ModelHooks, DataHooks, CheckpointHooks) for name in vars(kind) if name[0] != "_"]
STEPS = [
    "training_step", "validation_step", "test_step", "predict_step", "backward", "configure_callbacks",
    "configure_optimizers", "configure_gradient_clipping", "lr_scheduler_step", "optimizer_step",
    "optimizer_zero_grad",
]  # fmt: skip
REFUSED = {"configure_model", "configure_sharded_model"}
DATA = {
    "train_dataloader", "val_dataloader", "on_before_batch_transfer", "transfer_batch_to_device",
    "on_after_batch_transfer",
}  # fmt: skip
RECORDED = [name for name in (*HOOKS, *STEPS) if name not in REFUSED]


class Plain(Net):
    """A network with data of its own."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(dataset(), batch_size=8)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(dataset(16, seed=1), batch_size=8)

    def test_dataloader(self) -> DataLoader:
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader:
        return DataLoader(dataset(8, seed=2), batch_size=8)


def form(value: Any) -> Any:
    """What a value is, without the numbers in it."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, (tuple, list)):
        return type(value).__name__, *(form(each) for each in value)
    if isinstance(value, dict) and "state_dict" not in value:
        return {key: form(each) for key, each in value.items()}
    return value if isinstance(value, (int, str, float, type(None))) else type(value).__name__


def recording(name: str) -> Callable[..., Any]:
    def hook(self: Any, *args: Any, **kwargs: Any) -> Any:
        method = getattr(super(Recorder, self), name)
        given = inspect.signature(method).bind(*args, **kwargs).arguments
        self.calls.append((name, {key: form(value) for key, value in given.items()}))
        return method(*args, **kwargs)

    hook.__name__ = name  # by which bound methods are pickled
    return hook


class Recorder(Plain):
    """Overrides every hook and step, and writes down how each is called."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, Any]] = []


for hook in RECORDED:
    setattr(Recorder, hook, recording(hook))

Calls = list[tuple[str, Any]]


def whole_life(module: LightningModule, recorder: Recorder, folder: Path) -> Calls:
    """Fitted, fitted on from a checkpoint, validated, tested and asked for predictions."""
    first = trainer([], max_epochs=1, gradient_clip_val=1.0)
    first.fit(module)
    first.save_checkpoint(folder / "a.ckpt")
    second = trainer([], max_epochs=2, accumulate_grad_batches=2)
    second.fit(module, ckpt_path=folder / "a.ckpt", weights_only=True)
    second.validate(module, verbose=False)
    second.test(module, verbose=False)
    assert second.predict(module)[0].shape == (8, 4)
    return recorder.calls


def distilled(student: LightningModule, **options: Any) -> lc.DistillationModule:
    return lc.DistillationModule(student, Net(), **options)


@pytest.fixture
def plain_calls(tmp_path: Path) -> Calls:
    recorder = Recorder()
    return whole_life(recorder, recorder, tmp_path)


def test_every_hook_is_called_as_ever(plain_calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_batch(*args: Any) -> Any:
        raise ValueError("no batch before the fit")

    # What the module itself asks of the data before it trains is not the student's fit.
    monkeypatch.setattr(distillation, "first_training_batch", no_batch)
    monkeypatch.setattr(distillation, "teacher_accuracy", lambda *args: None)
    recorder = Recorder()
    found = whole_life(distilled(recorder), recorder, tmp_path)
    assert {name for name, _ in plain_calls} == set(RECORDED)
    assert [name for name, _ in found] == [name for name, _ in plain_calls]
    for ours, theirs in zip(found, plain_calls, strict=True):
        assert ours == theirs


def test_trying_a_step_and_the_teacher_asks_for_data_only(plain_calls: Calls, tmp_path: Path) -> None:
    recorder = Recorder()
    found = whole_life(distilled(recorder), recorder, tmp_path)
    assert [call for call in found if call[0] not in DATA] == [call for call in plain_calls if call[0] not in DATA]
    more = [name for name, _ in found]
    for name, _ in plain_calls:
        more.remove(name)
    assert set(more) <= DATA


def test_hooks_that_are_not_defined_are_not_adopted() -> None:
    module = distilled(Net())
    adopted = {name for name in vars(module) if callable(vars(module)[name])}
    assert adopted == {"validation_step", "test_step", "predict_step"}


def test_those_of_the_outer_class_win() -> None:
    class Outer(LightningModule):
        def on_train_start(self) -> None:
            pass

    outer, inner = Outer(), Recorder()
    adopt_hooks(outer, inner)
    assert "on_train_start" not in vars(outer)
    assert vars(outer)["on_train_end"] == inner.on_train_end
    assert vars(outer)["backward"] == inner.backward
    assert vars(outer)["on_save_checkpoint"] == inner.on_save_checkpoint


def test_copies_call_the_hooks_of_the_copied_student() -> None:
    module = distilled(Recorder())
    module.on_train_end()
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        other.on_train_end()
        other.on_test_end()
        assert [name for name, _ in other.student.calls] == ["on_train_end", "on_train_end", "on_test_end"]
        assert vars(other)["on_test_end"].__self__ is other.student
        assert vars(other.student)["log"].outer is other
    assert [name for name, _ in module.student.calls] == ["on_train_end"]


def test_a_delegated_sees_what_is_put_in_place() -> None:
    class Owner:
        _trainer: object = None

        def log(self, name: str, *, value: int) -> str:
            return f"{type(self).__name__}: {name}={value}"

    class Inner(Owner):
        pass

    owner, inner = Owner(), Inner()
    delegated = DelegatedMethod(inner, owner, "log")
    assert delegated("a", value=3) == "Owner: a=3"
    owner.log = lambda name, value=0: f"instead {name}"
    assert delegated("a") == "instead a"
    inner._trainer = object()
    assert delegated("a", value=3) == "Inner: a=3", "the inner one is used by itself"


class WithoutIndex(Net):
    def training_step(self, batch: Any) -> Tensor:
        return self.loss(batch)


class WithIndex(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        assert isinstance(batch_idx, int)
        return self.loss(batch)


class AnyArguments(Net):
    def training_step(self, *args: Any) -> Tensor:
        assert len(args) == 2
        return self.loss(args[0])


@pytest.mark.parametrize("kind", [WithoutIndex, WithIndex, AnyArguments])
def test_training_steps_take_what_they_take(kind: type[Net]) -> None:
    trainer([], max_steps=2).fit(distilled(kind()), DataLoader(dataset(), batch_size=8))


def test_what_a_training_step_returns_beside_its_loss_reaches_the_hooks() -> None:
    class Returns(Net):
        def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
            return {"loss": self.loss(batch), "extra": batch_idx}

        def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
            assert outputs["extra"] == batch_idx
            assert set(outputs) == {"loss", "extra"}
            assert outputs["loss"].ndim == 0
            self.seen = batch_idx

    student = Returns()
    trainer([], max_steps=2).fit(distilled(student), DataLoader(dataset(), batch_size=8))
    assert student.seen == 1


# What a student logs.


STAGES = ("train", "val", "test", "predict")


class Logging(Plain):
    """Logs numbers, tensors and metrics in every step; dropout shows whether random numbers are left alone."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.2)
        self.accuracies = nn.ModuleDict({f"of_{name}": MulticlassAccuracy(4) for name in STAGES})

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.dropout(x))

    def shared(self, batch: tuple[Tensor, Tensor], stage: str) -> Tensor:
        logits = self(batch[0])
        loss = nn.functional.cross_entropy(logits, batch[1])
        self.accuracies[f"of_{stage}"](logits, batch[1])
        if stage != "predict":
            self.log(f"{stage}/acc", self.accuracies[f"of_{stage}"], on_step=False, on_epoch=True)
            self.log(f"{stage}/loss", loss, prog_bar=True)
            self.log_dict({f"{stage}/a": 3.0, f"{stage}/b": loss.detach() * 2}, on_epoch=True)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Tensor]:
        return {"loss": self.shared(batch, "train"), "extra": torch.tensor(1.0)}

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.shared(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.shared(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.shared(batch, "predict")
        return self(batch[0])

    def on_train_epoch_end(self) -> None:
        self.log("epochs", float(self.current_epoch))

    def on_validation_epoch_end(self) -> None:
        self.log_dict({"val/steps": float(self.global_step)})


def logged(module: LightningModule) -> tuple[dict[str, float], Tensor]:
    torch.manual_seed(5)
    found: dict[str, float] = {}
    run = trainer([], max_epochs=2, log_every_n_steps=1)
    run.fit(module)
    found |= {f"fit {name}": float(value) for name, value in run.callback_metrics.items()}
    for stage in ("validate", "test"):
        (metrics,) = getattr(run, stage)(module, verbose=False)
        found |= {f"{stage} {name}": value for name, value in metrics.items()}
    return found, torch.cat(run.predict(module))


def test_logs_the_same_names_and_values() -> None:
    expected, predictions = logged(Logging())
    found, theirs = logged(distilled(Logging(), losses={"kd": lc.KD(weight=0.0)}))
    more = set(found) - set(expected)
    assert more == {"fit train/kd", "fit teacher/val_acc"}
    assert {name: value for name, value in found.items() if name not in more} == expected
    assert torch.equal(theirs, predictions)
    assert {"fit train/acc", "fit val/acc", "fit epochs", "fit train/b_epoch", "test test/b"} <= set(expected)
