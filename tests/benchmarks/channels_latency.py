"""Latency of networks with half of their multiply-accumulates removed, against the dense ones and Torch-Pruning's.

    python tests/benchmarks/channels_latency.py [--models resnet18 resnet50] [--batches 1 8] [--times 2] [--rounds 9]

Random weights, since what is removed and not what is left of the accuracy matters here. Ours are masked in a fit of one
step by ``Pruning(pattern=Channels(of="macs", round_to=8))`` and shrunk; Torch-Pruning's are removed at once, to as many
multiply-accumulates, in multiples of 8 as well. Files of floats, 224x224, ONNX Runtime, one thread, interleaved.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import warnings
from pathlib import Path

import timm
import torch
from interleaved import medians, onnx_runs, ratio
from lightning.pytorch import LightningModule, Trainer
from peers import macs, torch_pruned
from torch import Tensor, nn
from torch.utils.data import DataLoader

import lightning_compress as lc

IMAGE = torch.zeros(1, 3, 224, 224)


class Module(LightningModule):
    """A LightningModule that knows nothing of this package."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.net(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def dense(name: str) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name).eval()


def ours(name: str, times: float) -> nn.Module:
    pruning = lc.Pruning(
        1 - 1 / times,
        pattern=lc.Channels(of="macs", round_to=8),
        schedule=lc.Schedule(begin=0.0, curve="one_shot"),
        targets=lc.Targets(module="net"),
        example_inputs=IMAGE,
    )
    trainer = Trainer(
        max_steps=1,
        accelerator="cpu",
        callbacks=[pruning],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Module(dense(name))
    trainer.fit(module, DataLoader(torch.randn(2, 3, 64, 64), batch_size=2))
    return lc.shrink(module.net.eval(), IMAGE)[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--times", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=9)
    args = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for name in args.models:
        theirs = torch_pruned(lambda name=name: dense(name), IMAGE, args.times, lambda layer: layer == "fc", round_to=8)
        nets = {"dense": dense(name), "ours": ours(name, args.times), "torch-pruning": theirs}
        for arm, net in nets.items():
            fewer = macs(nets["dense"], IMAGE) / macs(net, IMAGE)
            params = sum(p.numel() for p in net.parameters())
            print(f"{name} {arm:13} {fewer:.2f} times fewer multiply-accumulates, {params:,} parameters")
        with tempfile.TemporaryDirectory() as folder:
            files = {arm: Path(folder) / f"{arm}.onnx" for arm in nets}
            for arm, net in nets.items():
                lc.export_onnx(net, files[arm], IMAGE)
            for batch in args.batches:
                images = torch.randn(batch, 3, 224, 224).numpy()
                arms = {arm: onnx_runs(path, images, runs=max(2, 10 // batch)) for arm, path in files.items()}
                results = medians(arms, rounds=args.rounds)
                shown = ", ".join(f"{arm} {1e3 * statistics.median(times):.1f} ms" for arm, times in results.items())
                print(f"{name}, batch {batch}: {shown}")
                for arm in ("ours", "torch-pruning"):
                    print(f"{name}, batch {batch}: dense / {arm}: {ratio(results, 'dense', arm)}", flush=True)


if __name__ == "__main__":
    main()
