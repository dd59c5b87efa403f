"""Accuracy of a CIFAR ResNet without a part of its channels, against Torch-Pruning at the same budget, over seeds.

    python tests/benchmarks/cifar10_channels.py --root DATA --weights cifar10_resnet20.safetensors
        [--network resnet20_cifar] [--times 2.0] [--epochs 2] [--runs ours torch_pruning] [--seeds 0 1 2]
        [--score L2] [--held-out 5000] [--compile]

Both begin with the trained weights, end with --times fewer multiply-accumulates, and train --epochs epochs: SGD with
momentum 0.9, weight decay 1e-4, learning rate 0.01 to 0 along a cosine per step, batch 128, shifts of up to 4 pixels
and mirror images. Torch-Pruning removes channels at once, ranked by the L2 norms of their groups, and trains the
smaller network; the layers that write to the streams are left whole by hand, since its dependency graph does not see
that their shortcuts pad channels. Ours masks channels before the first step, removes them after it, and trains the
smaller network. Accuracy is that of the smaller network on the 10,000 test images, once, at the end; with --held-out on
so many of the training images, which are then not trained on: for choosing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from cifar10 import accuracy, options, over_seeds, sgd, trainer
from peers import macs, torch_pruned
from torch import nn

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule
from lightning_compress.pruning.scores import Score

SCORES: dict[str, Score] = {"L1": lc.Magnitude(), "L2": lc.Magnitude(2), "LAMP": lc.LAMP(), "FPGM": lc.FPGM()}
IMAGE = torch.zeros(1, 3, 32, 32)


def classifier(
    net: str | nn.Module, args: argparse.Namespace, checkpoint: str | None = None
) -> lc.ClassificationModule:
    return lc.ClassificationModule(net, 10, optimizer=sgd(args.learning_rate), checkpoint=checkpoint)


def fine_tuned(net: nn.Module, data: CIFAR10DataModule, args: argparse.Namespace) -> nn.Module:
    module = classifier(net.train(), args)  # a Trainer leaves modes as they are
    if args.compile:
        module.model.compile()
    trainer(args.epochs).fit(module, datamodule=data)
    return module.model.cpu()


def ours(data: CIFAR10DataModule, args: argparse.Namespace) -> nn.Module:
    module = classifier(args.network, args, args.weights)
    pruning = lc.Pruning(
        1 - 1 / args.times,
        pattern=lc.Channels(of="macs"),
        score=SCORES[args.score],
        schedule=lc.Schedule(curve="one_shot"),
        targets=lc.Targets(module="model"),
        example_inputs=IMAGE,
    )
    trainer(1, pruning, max_steps=1).fit(module, datamodule=data)
    return fine_tuned(lc.shrink(module.model.cpu(), IMAGE)[0], data, args)


def torch_pruning(data: CIFAR10DataModule, args: argparse.Namespace) -> nn.Module:
    def is_whole(name: str) -> bool:
        return name in ("conv1", "linear") or name.endswith("conv2")

    return fine_tuned(torch_pruned(lambda: dense(args), IMAGE, args.times, is_whole, round_to=None), data, args)


def dense(args: argparse.Namespace) -> nn.Module:
    return classifier(args.network, args, args.weights).model.eval()


RUNS: dict[str, Callable[[CIFAR10DataModule, argparse.Namespace], nn.Module]] = {
    "ours": ours,
    "torch_pruning": torch_pruning,
}


def run(name: str, data: CIFAR10DataModule, args: argparse.Namespace) -> tuple[float, str]:
    """Accuracy in percent of the smaller network, and how small it is."""
    small = RUNS[name](data, args)
    fewer = macs(dense(args), IMAGE) / macs(small, IMAGE)
    parameters = sum(p.numel() for p in small.parameters())
    said = f"{fewer:.2f} times fewer multiply-accumulates, {parameters:,} parameters, "
    return accuracy(classifier(small, args), data, args), said


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--network", default="resnet20_cifar")
    parser.add_argument("--times", type=float, default=2.0, help="how many times fewer multiply-accumulates")
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--score", choices=SCORES, default="L2")
    args = parser.parse_args()
    data = CIFAR10DataModule(args.root, val_size=args.held_out)
    for name in args.runs:
        over_seeds(name, lambda name=name: run(name, data, args), args.seeds)


if __name__ == "__main__":
    main()
