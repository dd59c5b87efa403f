"""Accuracy of a CIFAR ResNet without a part of its channels, against Torch-Pruning at the same budget, over seeds.

    python tests/benchmarks/cifar10_channels.py --root DATA --weights cifar10_resnet20.safetensors
        [--network resnet20_cifar] [--times 2.0] [--epochs 2] [--runs ours torch_pruning] [--seeds 0 1 2]
        [--score Magnitude] [--begin 0] [--end 0.25] [--curve one_shot] [--held-out 5000] [--compile]

Both begin with the trained weights, end with --times fewer multiply-accumulates, and train --epochs epochs: SGD with
momentum 0.9, weight decay 1e-4, learning rate 0.01 to 0 along a cosine per step, batch 128, shifts of up to 4 pixels
and mirror images. Torch-Pruning removes channels at once, ranked by the L2 norms of their groups, and trains the
smaller network; the layers that write to the streams are left whole by hand, since its dependency graph does not see
that their shortcuts pad channels. Ours masks channels before the first step (with --curve cubic, over the first part of
the run, up to --end), and removes them afterwards. Accuracy is that of the smaller network on the 10,000 test images,
once, at the end; with --held-out on so many of the training images, which are then not trained on: for choosing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from cifar10 import accuracy, options, over_seeds, sgd, trainer
from lightning.pytorch import Callback
from peers import macs, torch_pruned
from torch import nn

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule

IMAGE = torch.zeros(1, 3, 32, 32)


def classifier(
    net: str | nn.Module, args: argparse.Namespace, checkpoint: str | None = None
) -> lc.ClassificationModule:
    return lc.ClassificationModule(net, 10, optimizer=sgd(args.learning_rate), checkpoint=checkpoint)


def train(
    module: lc.ClassificationModule, data: CIFAR10DataModule, args: argparse.Namespace, *callbacks: Callback
) -> None:
    if args.compile:
        module.model.compile()
    trainer(args.epochs, *callbacks).fit(module, datamodule=data)
    module.cpu()


def ours(data: CIFAR10DataModule, args: argparse.Namespace) -> nn.Module:
    module = classifier(args.network, args, args.weights)
    pruning = lc.Pruning(
        1 - 1 / args.times,
        pattern=lc.Channels(of="macs"),
        score=getattr(lc, args.score)(),
        schedule=lc.Schedule(begin=args.begin, end=args.end, curve=args.curve),
        targets=lc.Targets(module="model"),
        example_inputs=IMAGE,
    )
    train(module, data, args, pruning)
    return lc.shrink(module.model, IMAGE)[0]


def torch_pruning(data: CIFAR10DataModule, args: argparse.Namespace) -> nn.Module:
    def is_whole(name: str) -> bool:
        return name in ("conv1", "linear") or name.endswith("conv2")

    net = torch_pruned(lambda: dense(args), IMAGE, args.times, is_whole, round_to=None)
    module = classifier(net.train(), args)  # a Trainer leaves modes as they are
    train(module, data, args)
    return module.model


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
    parser.add_argument("--score", default="Magnitude")
    parser.add_argument("--begin", type=float, default=0.0, help="fraction of the run after which channels are masked")
    parser.add_argument("--end", type=float, default=0.25, help="fraction of the run in which channels are masked")
    parser.add_argument("--curve", default="one_shot")
    args = parser.parse_args()
    data = CIFAR10DataModule(args.root, val_size=args.held_out)
    for name in args.runs:
        over_seeds(name, lambda name=name: run(name, data, args), args.seeds)


if __name__ == "__main__":
    main()
