"""Accuracy of a ResNet-20 on CIFAR-10 with and without a ResNet-56 as teacher, at the same budget, over seeds.

    python tests/benchmarks/cifar10_distillation.py --root DATA --teacher cifar10_resnet56.safetensors
        [--weights cifar10_resnet20.safetensors] [--epochs 2] [--lr 0.01] [--runs alone kd] [--seeds 0 1 2] [--compile]

SGD with momentum 0.9, weight decay 1e-4, a cosine per step, batch 128, shifts of up to 4 pixels and mirror images, all
50,000 training images; accuracy on the 10,000 test images, once, at the end. With --weights the student starts from
them, else from scratch (--lr 0.1). With --cache the teacher's logits are kept there and every image has --views views,
in the runs without a teacher as well.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
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


def module(run: str, args: argparse.Namespace) -> LightningModule:
    def sgd(params: object) -> torch.optim.Optimizer:
        return torch.optim.SGD(params, lr=args.lr, momentum=0.9, weight_decay=1e-4)

    student = Alone("resnet20_cifar", 10, optimizer=sgd, checkpoint=args.weights)
    if args.compile:
        student.model.compile()
    if run == "alone":
        return student
    teacher = lc.Teacher("resnet56_cifar", checkpoint=args.teacher, compile=args.compile)
    losses = {"kd": lc.KD(temperature=args.temperature, weight=args.kd_weight)}
    return lc.DistillationModule(student, teacher, losses=losses, task_weight=args.task_weight, cache=args.cache)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--weights")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--temperature", type=float, default=4.0)
    parser.add_argument("--kd-weight", type=float, default=0.9)
    parser.add_argument("--task-weight", type=float, default=0.1)
    parser.add_argument("--runs", nargs="+", default=["alone", "kd"], choices=["alone", "kd"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cache")
    parser.add_argument("--views", type=int, default=4)
    parser.add_argument("--compile", action="store_true", help="torch.compile the networks, which is faster on a CPU")
    args = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    KeyedCIFAR10.num_views = args.views
    data = (KeyedCIFAR10 if args.cache else CIFAR10DataModule)(args.root, val_size=0)
    for run in args.runs:
        results = []
        for seed in args.seeds:
            seed_everything(seed, verbose=False)
            start = time.perf_counter()
            trainer = Trainer(
                max_epochs=args.epochs, accelerator="auto", devices=1, logger=False, enable_checkpointing=False,
                enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trained = module(run, args)
            trainer.fit(trained, datamodule=data)
            results.append(100 * trainer.test(trained, datamodule=data, verbose=False)[0]["test/acc"])
            print(f"{run} seed {seed}: {results[-1]:.2f} % ({time.perf_counter() - start:.0f} s)", flush=True)
        spread = statistics.stdev(results) if len(results) > 1 else 0.0
        print(f"{run}: mean {statistics.mean(results):.2f} %, standard deviation {spread:.2f}, seeds {args.seeds}")


if __name__ == "__main__":
    main()
