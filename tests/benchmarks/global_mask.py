"""A global magnitude mask for timm's resnet50 (25.5 M weights): ours against torch.nn.utils.prune.global_unstructured.

    python tests/benchmarks/global_mask.py [--rounds 5]

Time is measured in turns in one process, memory as growth of the peak resident set in a process of each arm's own.
The masks are compared entry by entry.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import timm
import torch
from interleaved import medians, ratio
from torch import nn
from torch.nn.utils import prune

import lightning_compress as lc
from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.pruning.pruner import WeightPruner
from lightning_compress.pruning.ranking_groups import make_ranking_groups

SPARSITY = 0.9


def network() -> nn.Module:
    """The network, with the same weights in every process."""
    torch.manual_seed(0)
    return timm.create_model("resnet50")


def ours(model: nn.Module) -> MaskConstraint:
    """What the callback does at an update, masks and projection."""
    layers = [Layer(target.name, target.parameter) for target in lc.Targets().select(model)]
    constraint = MaskConstraint(layers)
    groups = make_ranking_groups(layers, SPARSITY)
    WeightPruner(constraint, groups, lc.Magnitude(), pattern=lc.Unstructured()).update(lambda s: s, step=0)
    return constraint


def theirs(model: nn.Module) -> list[tuple[nn.Module, str]]:
    """The same with torch."""
    weights = [(target.module, "weight") for target in lc.Targets().select(model)]
    prune.global_unstructured(weights, pruning_method=prune.L1Unstructured, amount=SPARSITY)
    return weights


ARMS = {"ours": ours, "torch": theirs}


def seconds(arm: str) -> list[float]:
    model = network()
    start = time.perf_counter()
    ARMS[arm](model)
    return [time.perf_counter() - start]


def peak(arm: str) -> float:
    """Growth of the peak resident set, in MB, in a fresh process."""
    return float(subprocess.run([sys.executable, __file__, "--peak", arm], capture_output=True, check=True).stdout)


def measure_peak(arm: str) -> None:
    model = network()
    torch.topk(torch.rand(1000), 10)  # loads what a first call loads
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present set
    before = peak_set()
    kept = ARMS[arm](model)
    print(peak_set() - before)
    del kept


def peak_set() -> float:
    """Peak resident set of this process, in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1024


def disagreements() -> tuple[int, int]:
    """Entries in which the two masks differ, and the difference of their numbers of zeros."""
    a, b = network(), network()
    mine, other = ours(a).masks, [module.weight_mask.bool() for module, _ in theirs(b)]
    differ = sum(int((x != y).sum()) for x, y in zip(mine, other, strict=True))
    return differ, sum(int(x.sum()) for x in mine) - sum(int(y.sum()) for y in other)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", choices=ARMS)
    args = parser.parse_args()
    if args.peak:
        measure_peak(args.peak)
        return
    results = medians({arm: lambda arm=arm: seconds(arm) for arm in ARMS}, rounds=args.rounds)
    memory = {arm: statistics.median(peak(arm) for _ in range(3)) for arm in ARMS}
    for arm in ARMS:
        print(f"{arm:6} {statistics.median(results[arm]):.3f} s, {memory[arm]:.0f} MB extra")
    print(f"torch / ours, time:   {ratio(results, 'torch', 'ours')}")
    print(f"torch / ours, memory: {memory['torch'] / memory['ours']:.1f}")
    print("entries that differ: {}, difference in number of zeros: {}".format(*disagreements()))


if __name__ == "__main__":
    main()
