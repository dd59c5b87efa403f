"""Accuracy of a ResNet-20 on CIFAR-10 whose layers share a few values, after two epochs of fine-tuning, over seeds.

    python tests/benchmarks/cifar10_clustering.py --root DATA --weights cifar10_resnet20.safetensors
        [--clusters 16 4] [--method hard dkm] [--seeds 0] [--end 0.5] [--every 0.05] [--exclude GLOB]
        [--held-out 5000] [--compile]

SGD with momentum 0.9, weight decay 1e-4, learning rate 0.01 to 0 along a cosine per step, batch 128, shifts of up to
4 pixels and mirror images, all 50,000 training images; accuracy on the 10,000 test images, once, at the end. All layers
are clustered, the final linear one included, unless --exclude names some.
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


def accuracy(clustering: lc.WeightClustering, data: CIFAR10DataModule, args: argparse.Namespace) -> tuple[float, int]:
    """Accuracy in percent, and the most values that a layer has."""
    module = lc.ClassificationModule("resnet20_cifar", 10, optimizer=sgd, checkpoint=args.weights)
    if args.compile:
        module.model.compile()
    trainer = Trainer(
        max_epochs=2,
        accelerator="auto",
        devices=1,
        callbacks=[clustering],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    evaluate, key = (trainer.validate, "val/acc") if args.held_out else (trainer.test, "test/acc")
    result = evaluate(module, datamodule=data, verbose=False)[0][key]
    most = max(len(target.parameter.unique()) for target in clustering.targets.select(module))
    return 100 * result, most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--clusters", type=int, nargs="+", default=[16, 4])
    parser.add_argument("--method", nargs="+", default=["hard", "dkm"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--end", type=float, default=0.5)
    parser.add_argument("--every", type=float, default=0.05)
    parser.add_argument("--curve", default="cubic", help="one_shot: weights never change clusters")
    parser.add_argument("--weighted", action="store_true")
    parser.add_argument("--exclude", nargs="*", default=(), help="globs of layers that stay as they are")
    parser.add_argument("--held-out", type=int, default=0, help="choose by so many training images")
    parser.add_argument("--compile", action="store_true", help="torch.compile the network, which is faster on a CPU")
    args = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    data = CIFAR10DataModule(args.root, val_size=args.held_out)
    targets = lc.Targets(exclude=args.exclude)
    schedule = lc.Schedule(end=args.end, every=args.every, curve=args.curve)
    for method in args.method:
        for clusters in args.clusters:
            results = []
            for seed in args.seeds:
                seed_everything(seed, verbose=False)
                start = time.perf_counter()
                clustering = lc.WeightClustering(
                    clusters, method=method, weighted=args.weighted, schedule=schedule, targets=targets
                )
                result, most = accuracy(clustering, data, args)
                results.append(result)
                seconds = time.perf_counter() - start
                print(f"{method} {clusters} seed {seed}: {result:.2f} % ({most} values, {seconds:.0f} s)", flush=True)
            mean, spread = statistics.mean(results), statistics.stdev(results) if len(results) > 1 else 0.0
            print(f"{method} {clusters}: mean {mean:.2f} %, standard deviation {spread:.2f}, seeds {args.seeds}")


if __name__ == "__main__":
    main()
