"""What channels can be removed from timm's networks: two rounds at two ratios, checked at every turn; a Markdown table.

    python tests/benchmarks/channels_matrix.py [--models resnet18 ...] [--ratios 0.2 0.5] [--size 224]

Each network starts from scratch and makes two training steps on noise, so that its batch norms have statistics. In each
round the given part of every group's channels, those with the smallest weights, is set to zero and removed; the masked
and the smaller network are compared, and the smaller one is trained for a step and copied. After the second round it is
exported to ONNX and run in ONNX Runtime, and loaded from the removal log, its weights and the name of the network in
another process. Printed are the largest difference of outputs relative to the largest output, and the multiply-
accumulates and parameters that are left. A network in which anything fails has its error in place of numbers.
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch
from peers import macs
from torch import Tensor, nn

import lightning_compress as lc
import lightning_compress.models.networks  # registers SqueezeNet and the CIFAR ResNets with timm
from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import ChannelGroup, named_tensors

MODELS = [
    "resnet20_cifar", "resnet56_cifar", "resnet18", "resnet50", "resnext50_32x4d", "resnetv2_50", "vgg16_bn",
    "densenet121", "mobilenetv2_100", "mobilenetv3_small_100", "efficientnet_b0", "efficientnet_lite0", "ghostnet_100",
    "convnext_atto", "regnety_002", "repvgg_a0", "vit_tiny_patch16_224", "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224", "squeezenet1_1",
]  # fmt: skip

RELOAD = """
import sys, timm, torch, lightning_compress as lc, lightning_compress.models.networks
folder, name = sys.argv[1:]
net = timm.create_model(name, num_classes=10).eval()
lc.RemovalLog.load(f"{folder}/log.json").replay_(net)
lc.load_packed(f"{folder}/weights.packed", into=net)
images, expected = torch.load(f"{folder}/expected.pt", weights_only=True)
torch.testing.assert_close(net(images), expected, rtol=0, atol=1e-5 * expected.abs().max().item())
"""


def train(net: nn.Module, images: Tensor, steps: int) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    net.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), torch.arange(len(images)) % 10).backward()
        optimizer.step()
    net.eval()


def smallest(group: ChannelGroup, tensors: dict[str, Tensor], ratio: float) -> Tensor:
    """A part of a group's channels, those with the smallest sums of squares."""
    total = torch.zeros(group.num_channels)
    for item in group.output_slices:
        squares = tensors[item.tensor].detach().movedim(item.dim, 0).square()
        total.index_add_(0, item.channels, squares.reshape(len(squares), -1).sum(dim=1)[item.positions])
    num = min(round(ratio * group.num_channels), group.num_channels - 1)
    return torch.zeros(group.num_channels, dtype=torch.bool).index_fill_(0, total.argsort()[:num], True)


def apart(net: nn.Module, other: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        ours, theirs = net(images), other(images)
    return float((ours - theirs).abs().max() / theirs.abs().max())


def row(name: str, ratio: float, size: int) -> str:
    """One line of the table."""
    torch.manual_seed(0)
    size = 32 if "cifar" in name else size
    images = torch.randn(4, 3, size, size)
    net = timm.create_model(name, num_classes=10)
    train(net, images, steps=2)
    before = macs(net, images[:1]), sum(p.numel() for p in net.parameters())
    groups, whole = find_groups(net, (images[:1],), {})
    log, worst = lc.RemovalLog(), 0.0
    for _ in range(2):
        for group in find_groups(net, (images[:1],), {})[0]:
            group.zero_(named_tensors(net), smallest(group, named_tensors(net), ratio))
        small, removed = lc.shrink(net, images[:1])
        worst = max(worst, apart(small, net, images))
        log, net = log.then(removed), small
        train(net, images, steps=1)
        assert apart(copy.deepcopy(net), net, images) == 0.0
    with tempfile.TemporaryDirectory() as folder:
        file = lc.export_onnx(net, Path(folder) / "small.onnx", images[:1])
        log.save(Path(folder) / "log.json")
        lc.save_packed(net, Path(folder) / "weights.packed")
        torch.save((images, net(images).detach()), Path(folder) / "expected.pt")
        subprocess.run([sys.executable, "-W", "ignore", "-c", RELOAD, folder, name], check=True)
    after = macs(net, images[:1]), sum(p.numel() for p in net.parameters())
    reasons = {
        reason.partition(", and a ")[2].partition(" sees")[0] or "untraceable stream" for reason in whole.values()
    }
    return (
        f"| {name} | {ratio:g} | {len(groups)} | {sum(g.num_channels for g in groups):,} | {after[0] / before[0]:.2f} "
        f"| {after[1] / before[1]:.2f} | {worst:.0e} | {file.difference:.0e} | {', '.join(sorted(reasons)) or 'none'} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.2, 0.5])
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| network | part, twice | groups | channels | MACs left | parameters left | masked to smaller | to ONNX "
          "| left whole |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|")
    for name in args.models:
        for ratio in args.ratios:
            start = time.perf_counter()
            try:
                print(row(name, ratio, args.size), flush=True)
            except Exception as error:
                print(f"| {name} | {ratio:g} | {type(error).__name__}: {error} |", flush=True)
            print(f"<!-- {time.perf_counter() - start:.0f} s -->", flush=True)


if __name__ == "__main__":
    main()
