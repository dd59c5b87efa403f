"""Accuracy of a ResNet-20 on CIFAR-10 with and without a ResNet-56 as teacher, at the same budget, over seeds.

    python tests/benchmarks/cifar10_distillation.py --root DATA --teacher cifar10_resnet56.safetensors
        [--weights cifar10_resnet20.safetensors] [--epochs 2] [--learning-rate 0.01] [--runs alone kd]
        [--seeds 0 1 2] [--cache DIR] [--held-out 5000] [--compile]

SGD with momentum 0.9, weight decay 1e-4, a cosine per step, batch 128, shifts of up to 4 pixels and mirror images, all
50,000 training images; accuracy on the 10,000 test images, once, at the end. With --weights the student starts from
them, else from scratch (--learning-rate 0.1). With --cache the teacher's logits are kept there and every image has
--views views, in the runs without a teacher as well. With --held-out, so many of the training images are not trained on
and the accuracy is on them: for choosing.
"""

from __future__ import annotations

import argparse

from cifar10 import accuracy, options, over_seeds, sgd, trainer
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule


class KeyedCIFAR10(CIFAR10DataModule):
    """CIFAR-10 in which an image has a few views, each with a key."""

    num_views = 4

    def train_dataloader(self) -> DataLoader:
        return DataLoader(lc.Keyed(self.train, self.num_views), self.batch_size, shuffle=True)


class Alone(lc.ClassificationModule):
    """Learns from labels, whether or not samples have keys."""

    def on_before_batch_transfer(self, batch: object, dataloader_idx: int) -> object:
        return getattr(batch, "sample", batch)


def module(name: str, args: argparse.Namespace) -> LightningModule:
    student = Alone("resnet20_cifar", 10, optimizer=sgd(args.learning_rate), checkpoint=args.weights)
    if args.compile:
        student.model.compile()
    if name == "alone":
        return student
    teacher = lc.Teacher("resnet56_cifar", checkpoint=args.teacher, compile=args.compile)
    losses = {"kd": lc.KD(temperature=args.temperature, weight=args.kd_weight)}
    return lc.DistillationModule(student, teacher, losses=losses, task_weight=args.task_weight, cache=args.cache)


def run(name: str, data: CIFAR10DataModule, args: argparse.Namespace) -> tuple[float, str]:
    """Accuracy in percent."""
    trained = module(name, args)
    trainer(args.epochs).fit(trained, datamodule=data)
    return accuracy(trained, data, args), ""


def main() -> None:
    parser = options(__doc__, from_scratch=True)
    parser.add_argument("--teacher", required=True, help="trained weights of a ResNet-56")
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--kd-weight", type=float, default=0.9)
    parser.add_argument("--task-weight", type=float, default=0.1)
    parser.add_argument("--runs", nargs="+", default=["alone", "kd"], choices=["alone", "kd"])
    parser.add_argument("--cache")
    parser.add_argument("--views", type=int, default=4)
    args = parser.parse_args()
    KeyedCIFAR10.num_views = args.views
    data = (KeyedCIFAR10 if args.cache else CIFAR10DataModule)(args.root, val_size=args.held_out)
    for name in args.runs:
        over_seeds(name, lambda name=name: run(name, data, args), args.seeds)


if __name__ == "__main__":
    main()
