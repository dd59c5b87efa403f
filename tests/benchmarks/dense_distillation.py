"""Segmentation and token classification on synthetic data, without a teacher and distilled from a larger network.

    python tests/benchmarks/dense_distillation.py [--task segmentation tokens] [--seeds 0 1 2] [--epochs 100]

Labels of the training data are wrong for 30 % of the objects or tokens, those of the test data are right. The teacher
is trained on more data than the student. Both students see the same samples, for the same number of steps, from the
same initial weights. Segmentation: mean intersection over union of a U-Net in percent, over the classes background,
disk and square. Tokens: accuracy of a BERT in percent at tokens that are neither padding nor ignored (-100).
"""

from __future__ import annotations

import argparse
import copy
import logging
import statistics
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from cifar10 import trainer
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForTokenClassification

import lightning_compress as lc

SIZE, LENGTH, VOCABULARY, WRONG, IGNORED, TEACHER_EPOCHS = 32, 24, 48, 0.3, -100, 12
Samples = list[dict[str, Tensor]]


class UNet(nn.Module):
    """Two levels with a shortcut; maps images ``(N, 1, H, W)`` to logits ``(N, 3, H, W)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = block(1, width), nn.Sequential(nn.MaxPool2d(2), block(width, 2 * width))
        self.up, self.last = nn.ConvTranspose2d(2 * width, width, 2, 2), block(2 * width, width)
        self.head = nn.Conv2d(width, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        first = self.first(images)
        return self.head(self.last(torch.cat([first, self.up(self.second(first))], 1)))


def block(in_channels: int, channels: int) -> nn.Sequential:
    layers = [
        layer
        for inputs in (in_channels, channels)
        for layer in (nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    ]
    return nn.Sequential(*layers)


def bert(width: int, layers: int) -> nn.Module:
    return BertForTokenClassification(
        BertConfig(
            vocab_size=VOCABULARY, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers,
            num_attention_heads=2, max_position_embeddings=LENGTH, num_labels=5,
        )
    )  # fmt: skip


def images(number: int, wrong: float) -> Samples:
    """Bright disks and squares on noise; a share of them has the label of the other kind."""
    rows, columns = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    samples = []
    for _ in range(number):
        labels = torch.zeros(SIZE, SIZE, dtype=torch.long)
        for kind in (1, 2, 1, 2):
            radius = torch.randint(4, 8, ())
            down, right = ((axis - torch.randint(SIZE, ())).abs() for axis in (rows, columns))
            distance = (down**2 + right**2).sqrt() if kind == 1 else torch.maximum(down, right)
            labels[distance <= radius] = 3 - kind if torch.rand(()) < wrong else kind
        samples.append({"images": ((labels > 0) + 0.3 * torch.randn(SIZE, SIZE))[None], "labels": labels})
    return samples


def sentences(number: int, wrong: float) -> Samples:
    """Tokens whose class depends on the token before them, too, with padding and ignored positions."""
    samples = []
    for _ in range(number):
        ids, length = torch.randint(VOCABULARY, (LENGTH,)), torch.randint(LENGTH // 2, LENGTH + 1, ())
        mask = torch.arange(LENGTH) < length
        labels = torch.maximum(ids % 5, ids.roll(1) % 5)
        labels = torch.where(torch.rand(LENGTH) < wrong, torch.randint(5, (LENGTH,)), labels)
        labels[~mask | (torch.rand(LENGTH) < 0.1)] = IGNORED
        samples.append({"input_ids": ids, "attention_mask": mask.long(), "labels": labels})
    return samples


class Classifier(LightningModule):
    """A LightningModule that knows nothing of distillation."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.logits(batch).movedim(-1, 1), batch["labels"])

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Logits with the classes last."""
        if "images" in batch:
            return self.network(batch["images"]).movedim(1, -1)
        return self.network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=3e-3)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def mean_iou(predicted: Tensor, labels: Tensor) -> float:
    classes = range(3)
    both = [((predicted == c) & (labels == c)).sum() / ((predicted == c) | (labels == c)).sum() for c in classes]
    return 100 * float(torch.stack(both).mean())


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    return 100 * float((predicted == labels)[labels != IGNORED].float().mean())


class Task(NamedTuple):
    """One task: its data, networks and measure."""

    samples: Callable[[int, float], Samples]
    teacher: Callable[[], nn.Module]
    student: Callable[[], nn.Module]
    measure: Callable[[Tensor, Tensor], float]
    num_teacher: int
    num_student: int


TASKS = {
    "segmentation": Task(images, lambda: UNet(16), lambda: UNet(6), mean_iou, 1536, 96),
    "tokens": Task(sentences, lambda: bert(64, 2), lambda: bert(16, 1), accuracy, 2048, 128),
}


def fit(module: LightningModule, samples: Samples, epochs: int) -> None:
    trainer(epochs).fit(module, DataLoader(samples, 16, shuffle=True))


@torch.no_grad()
def measured(module: Classifier, task: Task, test: Samples) -> float:
    batches = list(DataLoader(test, 64))
    predicted = torch.cat([module.eval().logits(batch).argmax(-1) for batch in batches])
    return task.measure(predicted, torch.cat([batch["labels"] for batch in batches]))


def run(task: Task, epochs: int) -> dict[str, float]:
    """Train the teacher and both students with the current seed."""
    test, labeled = task.samples(256, 0.0), task.samples(task.num_teacher, WRONG)
    teacher, student = Classifier(task.teacher()), Classifier(task.student())
    fit(teacher, labeled, TEACHER_EPOCHS)
    results = {"teacher": measured(teacher, task, test)}
    for name in ("no KD", "distilled"):
        module, state = copy.deepcopy(student), torch.get_rng_state()
        losses = {"kd": lc.KD(temperature=2.0, weight=0.9)}
        distilled = lc.DistillationModule(module, teacher.network, losses=losses, task_weight=0.1)
        fit(module if name == "no KD" else distilled, labeled[: task.num_student], epochs)
        torch.set_rng_state(state)  # the same batches
        results[name] = measured(module, task, test)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=100)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    for name in args.task:
        runs = []
        for seed in args.seeds:
            seed_everything(seed, verbose=False)
            runs.append(run(TASKS[name], args.epochs))
            print(name, "seed", seed, {key: round(value, 2) for key, value in runs[-1].items()}, flush=True)
        means = {key: round(statistics.mean(each[key] for each in runs), 2) for key in runs[0]}
        gains = [round(each["distilled"] - each["no KD"], 2) for each in runs]
        print(f"{name}: means {means}, gains {gains}", flush=True)


if __name__ == "__main__":
    main()
