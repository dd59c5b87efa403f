"""Clusters of weights: ours against scikit-learn's KMeans on a large layer, and a whole resnet50.

    python tests/benchmarks/kmeans.py [--rounds 3] [--skip-sklearn]

The layer has 2.36 M weights, as a 3x3 convolution of 512 channels, and 16 clusters. Time is measured in turns in one
process, and the sums of squared distances are compared. The network is timm's with random weights, all convolutions
and linear layers of which get 16 values each, first from nothing and then from the values that there are.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
from interleaved import medians, ratio
from sklearn.cluster import KMeans
from torch import Tensor

import lightning_compress as lc
from lightning_compress.clustering.clusterer import Clusterer
from lightning_compress.clustering.codebook_spec import CodebookSpec
from lightning_compress.constraints.codebook import CodebookConstraint
from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.kmeans import cluster_rows

NUM_CLUSTERS = 16


def layer() -> Tensor:
    """The weights, as one row."""
    return 0.02 * torch.randn(512, 512, 3, 3, generator=torch.Generator().manual_seed(0)).view(1, -1)


def ours(row: Tensor) -> float:
    codebook, assignment = cluster_rows(row, NUM_CLUSTERS)
    return float((row.double() - codebook.double().gather(1, assignment.long())).square().sum())


def theirs(row: Tensor) -> float:
    return float(KMeans(NUM_CLUSTERS, n_init=1, random_state=0).fit(row.view(-1, 1).numpy()).inertia_)


ARMS = {"ours": ours, "sklearn": theirs}


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(row: Tensor, rounds: int) -> None:
    found: dict[str, float] = {}

    def run(arm: str) -> list[float]:
        return [seconds(lambda: found.update({arm: ARMS[arm](row)}))]

    results = medians({arm: lambda arm=arm: run(arm) for arm in ARMS}, rounds=rounds)
    for arm in ARMS:
        print(f"{arm:8} {statistics.median(results[arm]):7.3f} s, inertia {found[arm]:.6f}")
    print(f"sklearn / ours, time: {ratio(results, 'sklearn', 'ours')}")
    print(f"ours / sklearn, inertia: {found['ours'] / found['sklearn']:.6f}")


def network(rounds: int) -> None:
    first, warm = [], []
    for _ in range(rounds):
        torch.manual_seed(0)
        model = timm.create_model("resnet50")
        layers = [Layer(target.name, target.parameter) for target in lc.Targets().select(model)]
        clusterer = Clusterer(CodebookConstraint(layers), [CodebookSpec(NUM_CLUSTERS)] * len(layers))
        zeros = [None] * len(layers)
        first.append(seconds(lambda clusterer=clusterer, zeros=zeros: clusterer.update(zeros, fraction=0.5)))
        for held in layers:
            held.weight.add_(1e-3 * held.weight.std() * torch.randn_like(held.weight))
        warm.append(seconds(lambda clusterer=clusterer, zeros=zeros: clusterer.update(zeros)))
    num_weights = sum(held.weight.numel() for held in layers)
    print(f"resnet50, {len(layers)} layers, {num_weights / 1e6:.1f} M weights:")
    print(
        f"first update {statistics.median(first):.2f} s, from the values that there are {statistics.median(warm):.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--skip-sklearn", action="store_true")
    args = parser.parse_args()
    if not args.skip_sklearn:
        compare(layer(), args.rounds)
    network(args.rounds)


if __name__ == "__main__":
    main()
