"""Accuracy of a pruned ResNet-20 on CIFAR-10 after two epochs of fine-tuning, over seeds.

    python tests/benchmarks/cifar10_pruning.py --root DATA --weights cifar10_resnet20.safetensors
        [--sparsity 0.9 0.95] [--seeds 0 1 2] [--score LAMP] [--end 0.25] [--curve cubic] [--distilled]
        [--held-out 5000] [--compile]

All layers are ranked together on the cubic schedule over the first part of the run, up to --end: after that the
learning rate is still high enough for the rest to recover.
SGD with momentum 0.9, weight decay 1e-4, learning rate 0.01 to 0 along a cosine per step, batch 128, shifts of up to
4 pixels and mirror images, all 50,000 training images; accuracy on the 10,000 test images, once, at the end.
With --distilled the network is distilled from its own dense weights (Hinton's loss at temperature 4, nine tenths).
With --held-out, so many of the training images are not trained on and the accuracy is on them: for choosing a schedule.
"""

from __future__ import annotations

import argparse

from cifar10 import accuracy, distilled, options, over_seeds, resnet20, trainer

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule


def run(sparsity: float, data: CIFAR10DataModule, args: argparse.Namespace) -> tuple[float, str]:
    """Accuracy in percent, and the sparsity that was counted."""
    schedule = lc.Schedule(end=args.end, curve=args.curve)
    pruning = lc.Pruning(sparsity, score=getattr(lc, args.score)(), schedule=schedule)
    module = resnet20(args)
    trainer(args.epochs, pruning).fit(distilled(module, args), datamodule=data)
    return accuracy(module, data, args), f"{lc.report(module).weights.sparsity:.4%} zeros, "


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95])
    parser.add_argument("--score", default="LAMP")
    parser.add_argument("--end", type=float, default=0.25, help="fraction of the run in which weights are pruned")
    parser.add_argument("--curve", default="cubic", help="one_shot: all before the first step")
    parser.add_argument("--distilled", action="store_true", help="distil the network from its own dense weights")
    args = parser.parse_args()
    data = CIFAR10DataModule(args.root, val_size=args.held_out)
    for sparsity in args.sparsity:
        over_seeds(f"{sparsity:.0%}", lambda sparsity=sparsity: run(sparsity, data, args), args.seeds)


if __name__ == "__main__":
    main()
