"""Accuracy of a ResNet-20 on CIFAR-10 from packed files of given sizes, without training and after two epochs.

    python tests/benchmarks/cifar10_size.py --root DATA --weights cifar10_resnet20.safetensors
        [--arm untrained trained pruned] [--sizes 60 50] [--seeds 0 1 2] [--results FILE.jsonl] [--figure curve.png]

Sizes are in kB; by default 0.85 of those of the ISO standard's coder without training, and 0.6 with it. They are of
the whole state dict, with norms and codebooks in float16. *untrained*: `lc.quantize_to_size` on 512 training images.
*trained*: `lc.SizeBudget` in a fit, distilled from the dense weights (Hinton's loss at temperature 4, nine tenths).
*pruned*: the same with `lc.Pruning(0.6)` before it. SGD with momentum 0.9, weight decay 1e-4, learning rate 0.01 to 0
along a cosine per step, batch 128, shifts and mirror images, all 50,000 training images; accuracy on the 10,000 test
images, once, of the model that is loaded back from the file. With ``--results`` each run is kept as a line of a file,
and those that it has already are not made again; ``cifar10_size.jsonl`` has the runs that README.md speaks of.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from cifar10 import accuracy, distilled, options, over_seeds, resnet20, trainer
from lightning.pytorch import Callback

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule

HALF = ("norms", "codebooks")
# Bytes and accuracy of the ISO standard's reference coder (nncodec 2.1.3) with its trellis quantizer, untrained, on the
# first 2,000 test images.
STANDARD = ((159_933, 91.50), (128_829, 90.75), (111_709, 90.50), (100_026, 90.30), (83_749, 88.80))
SIZES = {"untrained": (135.9, 109.5, 94.9, 85.0, 71.1), "trained": (96, 77, 67, 60, 50), "pruned": (96, 77, 67, 60, 50)}
LABELS = {
    "untrained": "quantize_to_size, no training",
    "trained": "SizeBudget, two epochs",
    "pruned": "SizeBudget and Pruning(0.6), two epochs",
}


@dataclass(frozen=True)
class Run:
    """A run and its result: the size asked for in kB, the bytes of the file, and the accuracy in percent."""

    arm: str
    size: float
    seed: int
    num_bytes: int
    accuracy: float


def fit(arm: str, size: int, data: CIFAR10DataModule, args: argparse.Namespace) -> tuple[float, int]:
    """Accuracy in percent, and bytes of the file."""
    module = resnet20(args)
    if arm == "untrained":
        data.setup("fit")
        images = torch.cat([batch[0] for batch, _ in zip(data.train_dataloader(), range(4), strict=False)])
        module.model = lc.quantize_to_size(module.model, images.split(128), size, half=HALF)
    else:
        budget = lc.SizeBudget(
            size,
            half=HALF,
            schedule=lc.Schedule(end=args.end, every=args.every),
            targets=lc.Targets(module="student.model"),
        )
        pruning: list[Callback] = [lc.Pruning(0.6, schedule=lc.Schedule(end=0.2))] if arm == "pruned" else []
        trainer(args.epochs, *pruning, budget).fit(distilled(module, args), datamodule=data)
    with tempfile.TemporaryDirectory() as folder:
        file = lc.save_packed(module.model, Path(folder, "model.packed"), half=HALF)
        loaded = resnet20(args)
        lc.load_packed(file.path, into=loaded.model)
        return accuracy(loaded, data, args), file.num_bytes


def draw(runs: Sequence[Run], path: str) -> None:
    """Draw accuracy over bytes, with the standard's coder."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4.5))
    axes.plot(*zip(*[(b / 1000, a) for b, a in STANDARD], strict=True), "k--o", label="ISO/IEC 15938-17, no training")
    for arm in dict.fromkeys(run.arm for run in runs):
        sizes = sorted({run.size for run in runs if run.arm == arm})
        groups = [[run for run in runs if (run.arm, run.size) == (arm, size)] for size in sizes]
        means = [
            (statistics.mean(r.num_bytes for r in group) / 1000, statistics.mean(r.accuracy for r in group))
            for group in groups
        ]
        line = axes.plot(*zip(*means, strict=True), "-o", label=LABELS[arm])[0]
        for (x, _), group in zip(means, groups, strict=True):
            axes.plot([x] * len(group), [r.accuracy for r in group], ".", color=line.get_color(), alpha=0.4)
    axes.set(xlabel="packed file, kB", ylabel="test accuracy, %", title="ResNet-20 on CIFAR-10")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, frameon=False, fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--sizes", type=float, nargs="+", help="kB")
    parser.add_argument("--arm", nargs="+", default=["untrained", "trained"], choices=[*SIZES])
    parser.add_argument("--end", type=float, default=0.5)
    parser.add_argument("--every", type=float, default=0.1)
    parser.add_argument("--results", type=Path, help="file of runs, which grows")
    parser.add_argument("--figure", help="picture of accuracy over bytes")
    args = parser.parse_args()
    args.distilled = True
    data = CIFAR10DataModule(args.root, val_size=args.held_out)
    lines = args.results.read_text().splitlines() if args.results and args.results.exists() else []
    runs = [Run(**json.loads(line)) for line in lines]
    cells = [(arm, size, seed) for arm in args.arm for size in args.sizes or SIZES[arm] for seed in args.seeds]
    for arm, size, seed in cells:
        if (arm, size, seed) in {(run.arm, run.size, run.seed) for run in runs}:
            continue

        def measured(arm: str = arm, size: float = size, seed: int = seed) -> tuple[float, str]:
            found, num_bytes = fit(arm, round(1000 * size), data, args)
            runs.append(Run(arm, size, seed, num_bytes, round(found, 2)))
            if args.results:
                with args.results.open("a") as file:
                    file.write(json.dumps(asdict(runs[-1])) + "\n")
            return found, f"{num_bytes} bytes, "

        over_seeds(f"{arm} {size:g} kB", measured, [seed])
    for arm, size in dict.fromkeys((run.arm, run.size) for run in runs):
        found = [run.accuracy for run in runs if (run.arm, run.size) == (arm, size)]
        most = max(run.num_bytes for run in runs if (run.arm, run.size) == (arm, size))
        print(f"{arm} {size:g} kB: {statistics.mean(found):.2f} % ({min(found):.2f} to {max(found):.2f}), {most} bytes")
    if args.figure:
        draw(runs, args.figure)


if __name__ == "__main__":
    main()
