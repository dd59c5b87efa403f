"""Accuracy of a pruned ResNet-20 on CIFAR-10 after two epochs of fine-tuning, over seeds.

    python tests/benchmarks/cifar10_pruning.py --root DATA --weights cifar10_resnet20.safetensors
        [--sparsity 0.9 0.95] [--seeds 0 1 2] [--score LAMP] [--end 0.25] [--held-out 5000] [--compile]

All layers are ranked together on the cubic schedule over the first part of the run, up to --end: after that the
learning rate is still high enough for the rest to recover.
SGD with momentum 0.9, weight decay 1e-4, learning rate 0.01 to 0 along a cosine per step, batch 128, shifts of up to
4 pixels and mirror images, all 50,000 training images; accuracy on the 10,000 test images, once, at the end.
With --held-out, so many of the training images are not trained on and the accuracy is on them: for choosing a schedule.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings

import torch
from lightning.pytorch import Trainer, seed_everything

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule


def sgd(params: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)


def accuracy(pruning: lc.Pruning, data: CIFAR10DataModule, args: argparse.Namespace) -> tuple[float, float]:
    """Test accuracy in percent, and the sparsity that was counted."""
    module = lc.ClassificationModule("resnet20_cifar", 10, optimizer=sgd, checkpoint=args.weights)
    if args.compile:
        module.model.compile()
    trainer = Trainer(
        max_epochs=2,
        accelerator="auto",
        devices=1,
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    if args.held_out:
        result = trainer.validate(module, datamodule=data, verbose=False)[0]["val/acc"]
    else:
        result = trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"]
    return 100 * result, lc.report(module).weights.sparsity


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--score", default="LAMP")
    parser.add_argument("--end", type=float, default=0.25, help="fraction of the run in which weights are pruned")
    parser.add_argument("--held-out", type=int, default=0, help="choose by so many training images")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network, which is faster on a CPU")
    args = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    data = CIFAR10DataModule(args.root, val_size=args.held_out)
    for sparsity in args.sparsity:
        results = []
        for seed in args.seeds:
            seed_everything(seed, verbose=False)
            start = time.perf_counter()
            pruning = lc.Pruning(sparsity, score=getattr(lc, args.score)(), schedule=lc.Schedule(end=args.end))
            result, counted = accuracy(pruning, data, args)
            results.append(result)
            seconds = time.perf_counter() - start
            print(f"{sparsity:.0%} seed {seed}: {result:.2f} % ({counted:.4%} zeros, {seconds:.0f} s)", flush=True)
        mean, spread = statistics.mean(results), statistics.stdev(results) if len(results) > 1 else 0.0
        print(f"{sparsity:.0%}: mean {mean:.2f} %, standard deviation {spread:.2f}, seeds {args.seeds}")


if __name__ == "__main__":
    main()
