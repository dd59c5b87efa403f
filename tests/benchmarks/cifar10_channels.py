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
import logging
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from lightning.pytorch import Trainer, seed_everything
from peers import macs, torch_pruned
from torch import nn

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule

IMAGE = torch.zeros(1, 3, 32, 32)


def sgd(params: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)


def train(
    module: lc.ClassificationModule, data: CIFAR10DataModule, args: argparse.Namespace, *callbacks: object
) -> None:
    if args.compile:
        module.model.compile()
    trainer(args, *callbacks).fit(module, datamodule=data)
    module.cpu()


def trainer(args: argparse.Namespace, *callbacks: object) -> Trainer:
    return Trainer(
        max_epochs=args.epochs,
        accelerator="auto",
        devices=1,
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )


def classifier(net: str | nn.Module, checkpoint: str | None = None) -> lc.ClassificationModule:
    return lc.ClassificationModule(net, 10, optimizer=sgd, checkpoint=checkpoint)


def ours(data: CIFAR10DataModule, args: argparse.Namespace) -> nn.Module:
    module = classifier(args.network, args.weights)
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
    module = classifier(net.train())  # a Trainer leaves modes as they are
    train(module, data, args)
    return module.model


def dense(args: argparse.Namespace) -> nn.Module:
    return classifier(args.network, args.weights).model.eval()


RUNS: dict[str, Callable[[CIFAR10DataModule, argparse.Namespace], nn.Module]] = {
    "ours": ours,
    "torch_pruning": torch_pruning,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--network", default="resnet20_cifar")
    parser.add_argument("--times", type=float, default=2.0, help="how many times fewer multiply-accumulates")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--score", default="Magnitude")
    parser.add_argument("--begin", type=float, default=0.0, help="fraction of the run after which channels are masked")
    parser.add_argument("--end", type=float, default=0.25, help="fraction of the run in which channels are masked")
    parser.add_argument("--curve", default="one_shot")
    parser.add_argument("--held-out", type=int, default=0, help="choose by so many training images")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network, which is faster on a CPU")
    args = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    data = CIFAR10DataModule(args.root, val_size=args.held_out)
    results: dict[str, list[float]] = {name: [] for name in args.runs}
    for seed in args.seeds:
        for name in args.runs:
            seed_everything(seed, verbose=False)
            start = time.perf_counter()
            small = RUNS[name](data, args)
            module = classifier(small)
            test = trainer(args).validate if args.held_out else trainer(args).test
            (measured,) = test(module, datamodule=data, verbose=False)
            results[name].append(100 * next(value for key, value in measured.items() if key.endswith("acc")))
            fewer = macs(dense(args), IMAGE) / macs(small, IMAGE)
            print(
                f"{name} seed {seed}: {results[name][-1]:.2f} %, {fewer:.2f} times fewer "
                f"multiply-accumulates, {sum(p.numel() for p in small.parameters()):,} parameters "
                f"({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    for name, values in results.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name}: mean {statistics.mean(values):.2f} %, standard deviation {spread:.2f}, seeds {args.seeds}")


if __name__ == "__main__":
    main()
