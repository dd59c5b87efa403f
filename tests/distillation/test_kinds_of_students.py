"""Students and teachers as others write them: transformers, detectors, Lightning's Tuner, no trial step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers import BertConfig, BertForQuestionAnswering, BertForTokenClassification

import lightning_compress as lc
from tests.fits import make_trainer


def bert(kind: type = BertForTokenClassification, num_labels: int = 5) -> nn.Module:
    return kind(
        BertConfig(
            vocab_size=20, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=8, num_labels=num_labels,
        )
    )  # fmt: skip


class Tagger(LightningModule):
    """Calls a model of transformers with the whole batch, and is never called itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def training_step(self, batch: Any) -> Tensor:
        return self.model(**batch).loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def tokens(**labels: Tensor) -> DataLoader:
    mask = torch.tensor([1, 1, 1, 1, 0, 0])
    sample = {"input_ids": torch.arange(6), "attention_mask": mask, "token_type_ids": torch.zeros(6).long(), **labels}
    return DataLoader([sample] * 4, 2)


TAGS = {"labels": torch.tensor([-100, 0, 4, 2, -100, -100])}


def fit(module: LightningModule, data: Any = None, val: Any = None, **options: Any) -> dict[str, float]:
    run = make_trainer(**{"max_epochs": 1, "num_sanity_val_steps": 0, **options})
    run.fit(module, data, val)
    return {name: float(value) for name, value in run.callback_metrics.items()}


def test_token_classification_leaves_padding_out() -> None:
    student, teacher, data = bert(), bert(), tokens(**TAGS)
    batch = next(iter(data))
    module = lc.DistillationModule(Tagger(student.eval()), teacher, losses={"kd": lc.KD()})
    with torch.no_grad():
        logits = [net.eval()(**batch).logits[:, 1:4].flatten(0, 1) for net in (student, teacher)]
    found = fit(module, data, limit_train_batches=1)
    assert found["train/kd"] == pytest.approx(float(lc.KD()(*logits, labels=None)), rel=1e-4)


def test_start_and_end_logits() -> None:
    data = tokens(start_positions=torch.tensor(1), end_positions=torch.tensor(3))
    nets = [bert(BertForQuestionAnswering, 2) for _ in range(2)]
    found = fit(lc.DistillationModule(Tagger(nets[0]), nets[1], losses={"kd": lc.KD(), "dkd": lc.DKD()}), data)
    assert min(found.values()) > 0


def test_features_and_trained_teachers_of_transformers() -> None:
    layers = (("model.bert.encoder.layer.0", "model.bert.encoder.layer.1"), ("model.bert", "model.bert"))
    losses = {"kd": lc.KD(), "hints": lc.FitNet(layers), "crd": lc.CRD(layers[1:])}
    # The teachers have no forward of their own.
    found = fit(
        lc.DistillationModule(Tagger(bert()), [Tagger(bert()), lc.MeanTeacher()], losses=losses), tokens(**TAGS)
    )
    assert {"train/kd", "train/hints", "train/crd"} <= set(found)
    fit(lc.DistillationModule(Tagger(bert()), lc.Peer(bert()), losses={"kd": lc.KD()}), tokens(**TAGS))


class Classifier(LightningModule):
    """Flattens its images in the training step."""

    def __init__(self, learning_rate: float = 0.1, batch_size: int = 3, width: int = 6) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, 3))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0].flatten(1)), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        pass

    def train_dataloader(self) -> DataLoader:
        return images(self.hparams.batch_size)

    def val_dataloader(self) -> DataLoader:
        return images(8)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.hparams.learning_rate)


def images(batch_size: int = 4) -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(32, 1, 4, 4), torch.arange(32) % 3), batch_size)


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))


def test_a_teacher_of_other_arguments() -> None:
    words = (
        r"The teacher 'Sequential' fails on the arguments of the student .*: give Teacher\(inputs=\.\.\.\), a function"
    )
    with pytest.raises(ValueError, match=words):
        fit(lc.DistillationModule(Classifier(), convolution()))
    taught = lc.Teacher(convolution(), inputs=lambda batch: batch[0])
    module = lc.DistillationModule(Classifier(), taught)
    assert {"train/kd", "teacher/val_acc"} <= set(fit(module))
    assert module.hparams.teacher is None


def test_a_teacher_that_does_not_take_the_validation_batches_has_no_accuracy() -> None:
    assert set(fit(lc.DistillationModule(Classifier(), Classifier(width=9).net))) == {"train/kd"}


def test_a_teacher_of_other_outputs() -> None:
    class Detector(nn.Module):
        """Returns boxes in evaluation, and logits of its head never."""

        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(1, 5, 1)

        def forward(self, images: Tensor) -> list[dict[str, Tensor]]:
            return [{"boxes": each} for each in self.head(images)]

    class Student(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return sum(each["boxes"].square().mean() for each in self.net(batch[0]))

    student = Student()
    student.net = Detector()
    with pytest.raises(ValueError, match=r"teacher must return logits .* with Teacher\(output=...\), or wrap"):
        fit(lc.DistillationModule(student, Detector(), output="net.head"))
    module = lc.DistillationModule(student, lc.Teacher(Detector(), output="head"), output="net.head")
    assert fit(module, limit_val_batches=0)["train/kd"] > 0


def test_a_recurrent_feature() -> None:
    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.lstm, self.fc = nn.LSTM(4, width, batch_first=True), nn.Linear(width, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.lstm(x.view(-1, 4, 4))[0][:, -1])

    student = Classifier()
    student.net = Net(6)
    losses = {"hints": lc.FitNet((("net.lstm", "lstm"),))}
    assert fit(lc.DistillationModule(student, Net(8), losses=losses))["train/hints"] > 0


def learning() -> lc.DistillationModule:
    losses = {"kd": lc.KD(), "hints": lc.FitNet((("net.0", "0"),))}
    teachers = [Classifier(width=9).net, lc.MeanTeacher(), lc.Peer(Classifier(width=5).net)]
    return lc.DistillationModule(Classifier(), teachers, losses=losses)


def test_the_tuner_finds_the_learning_rate_of_the_student(tmp_path: Any) -> None:
    module = learning()
    run = make_trainer(max_epochs=2, default_root_dir=tmp_path, enable_checkpointing=True)
    found = Tuner(run).lr_find(module, num_training=15)
    assert found is not None
    assert module.learning_rate == module.student.hparams.learning_rate == found.suggestion()
    run.fit(module)
    assert run.optimizers[0].param_groups[0]["lr"] == pytest.approx(found.suggestion())


@pytest.mark.parametrize("mode", ["power", "binsearch"])
def test_the_tuner_finds_the_batch_size_of_the_student(mode: str, tmp_path: Any) -> None:
    module = learning()
    run = make_trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
    found = Tuner(run).scale_batch_size(module, mode=mode, max_trials=3, steps_per_trial=1)
    assert module.batch_size == module.student.hparams.batch_size == found != 3


def test_a_teacher_out_of_memory_is_left_to_the_tuner(tmp_path: Any) -> None:
    class Large(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            if len(x) > 8:
                raise RuntimeError("CUDA out of memory.")
            return super().forward(x)

    run = make_trainer(max_epochs=1, default_root_dir=tmp_path, enable_checkpointing=True)
    module = lc.DistillationModule(Classifier(), Large(16, 3))
    assert Tuner(run).scale_batch_size(module, max_trials=4, steps_per_trial=1) == 8


def test_numbers_of_the_student() -> None:
    student = Classifier()
    student.depth, student.is_deep, student.name = 3, True, "net"
    module = lc.DistillationModule(student, student.net)
    module.depth, module.task_weight, module.other = 5, 0.5, 7
    assert (student.depth, module.depth, module.task_weight, module.other) == (5, 5, 0.5, 7)
    assert not any(hasattr(student, name) for name in ("task_weight", "other"))
    for name in ("is_deep", "name", "net", "missing"):
        with pytest.raises(AttributeError, match=name):
            getattr(module, name)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.randn(1, 4, 4), index % 3) for index in range(8)])


class Late(Classifier):
    """Cannot be run before the fit."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        assert self.trainer.train_dataloader is not None
        return super().training_step(batch, batch_idx)


def test_a_trial_step_on_data_without_a_length() -> None:
    losses = {"a": lc.FitNet((("net.0", "0"),))}  # whose adapter is built in the trial step
    module = lc.DistillationModule(Classifier(), Classifier(width=9).net, losses=losses)
    assert fit(module, DataLoader(Stream(), 4))["train/a"] > 0


def test_no_trial_step_is_possible() -> None:
    def module(loss: Any) -> lc.DistillationModule:
        return lc.DistillationModule(Late(), Classifier(width=9).net, losses={"a": loss})

    pair = (("net.0", "0"),)
    for loss in (lc.KD(), lc.SimilarityPreserving(pair), lc.FitNet((("net.2", "2"),))):
        assert fit(module(loss), images())["train/a"] > 0
    words = (
        r"The adapter 'a_0' is trained, but could not be built .*: call objective.build_adapters\({'a_0': (.*)}\) of"
    )
    with pytest.raises(ValueError, match=words):
        fit(module(lc.FitNet(pair)), images())
    built = module(lc.FitNet(pair))
    built.objective.build_adapters({"a_0": [[4, 6], [4, 9]]})
    assert fit(built, images())["train/a"] > 0


def test_a_first_step_without_loss() -> None:
    class Skips(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step(batch, batch_idx) if batch_idx else None

    assert "train/kd" in fit(lc.DistillationModule(Skips(), Classifier().net))


def test_students_that_are_not_of_this_lightning() -> None:
    base = type("LightningModule", (nn.Module,), {"__module__": "pytorch_lightning.core.module"})
    other = type("Other", (base,), {"forward": lambda self, x: x})
    for student in (other(), torch.compile(other()), {"model": other(), "num_classes": 3}):
        with pytest.raises(
            ValueError, match=r"student Other is a LightningModule of 'pytorch_lightning', which cannot"
        ):
            lc.DistillationModule(student, nn.Linear(16, 3))
    for student in (torch.compile(Classifier()), {"model": Classifier(), "num_classes": 3}):
        with pytest.raises(ValueError, match="student Classifier is a LightningModule, whose own training_step"):
            lc.DistillationModule(student, nn.Linear(16, 3))
