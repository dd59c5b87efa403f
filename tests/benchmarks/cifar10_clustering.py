"""Accuracy of a ResNet-20 on CIFAR-10 whose layers share a few values, after two epochs of fine-tuning, over seeds.

    python tests/benchmarks/cifar10_clustering.py --root DATA --weights cifar10_resnet20.safetensors
        [--clusters 16 4] [--method hard dkm] [--seeds 0] [--end 0.5] [--every 0.05] [--exclude GLOB] [--distilled]
        [--held-out 5000] [--compile]

SGD with momentum 0.9, weight decay 1e-4, learning rate 0.01 to 0 along a cosine per step, batch 128, shifts of up to
4 pixels and mirror images, all 50,000 training images; accuracy on the 10,000 test images, once, at the end. All layers
are clustered, the final linear one included, unless --exclude names some.
With --distilled the network is distilled from its own dense weights (Hinton's loss at temperature 4, nine tenths).
With --held-out, so many of the training images are not trained on and the accuracy is on them: for choosing a schedule.
"""

from __future__ import annotations

import argparse

from cifar10 import accuracy, distilled, options, over_seeds, resnet20, trainer

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule


def run(method: str, clusters: int, data: CIFAR10DataModule, args: argparse.Namespace) -> tuple[float, str]:
    """Accuracy in percent, and the most values that a layer has."""
    clustering = lc.WeightClustering(
        clusters,
        method=method,
        weighted=args.weighted,
        schedule=lc.Schedule(end=args.end, every=args.every, curve=args.curve),
        targets=lc.Targets(exclude=args.exclude),
    )
    module = resnet20(args)
    trainer(args.epochs, clustering).fit(distilled(module, args), datamodule=data)
    most = max(len(target.parameter.unique()) for target in clustering.targets.select(module))
    return accuracy(module, data, args), f"{most} values, "


def main() -> None:
    parser = options(__doc__, seeds=[0])
    parser.add_argument("--clusters", type=int, nargs="+", default=[16, 4])
    parser.add_argument("--method", nargs="+", default=["hard", "dkm"])
    parser.add_argument("--end", type=float, default=0.5)
    parser.add_argument("--every", type=float, default=0.05)
    parser.add_argument("--curve", default="cubic", help="one_shot: weights never change clusters")
    parser.add_argument("--weighted", action="store_true")
    parser.add_argument("--exclude", nargs="*", default=(), help="globs of layers that stay as they are")
    parser.add_argument("--distilled", action="store_true", help="distil the network from its own dense weights")
    args = parser.parse_args()
    data = CIFAR10DataModule(args.root, val_size=args.held_out)
    for method in args.method:
        for clusters in args.clusters:
            over_seeds(
                f"{method} {clusters}",
                lambda method=method, clusters=clusters: run(method, clusters, data, args),
                args.seeds,
            )


if __name__ == "__main__":
    main()
