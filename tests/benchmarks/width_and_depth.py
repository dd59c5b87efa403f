"""Half of the MACs of transformers and ConvNeXt, by embedding width and by depth: masked against removed.

    python tests/benchmarks/width_and_depth.py [--models vit_tiny_patch16_224 ...] [--sparsity 0.5]

Networks of timm with random weights at 224x224, a fit of two steps with `lc.Pruning` and each pattern, then
`lc.shrink`. The difference is the largest one of the outputs of masked and smaller network, relative to the largest
output, on two images.
"""

from __future__ import annotations

import argparse
import logging
import time
import warnings

import timm
import torch
from cifar10 import trainer
from lightning.pytorch import LightningModule, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.profiling import count_macs

MODELS = ["vit_tiny_patch16_224", "deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"]
PATTERNS = {"width": lc.Channels(of="macs", width=True), "depth": lc.Depth(of="macs")}


class Classifier(LightningModule):
    """A LightningModule that knows nothing of pruning."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = timm.create_model(name)
        self.example_input_array = torch.zeros(1, 3, 224, 224)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return torch.nn.functional.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 1e-3)


def run(name: str, pattern: lc.Channels | lc.Depth, sparsity: float) -> tuple[float, float]:
    """Share of the MACs that is left, and the relative difference of masked and smaller network."""
    seed_everything(0, verbose=False)
    module = Classifier(name)
    data = TensorDataset(torch.randn(4, 3, 224, 224), torch.randint(1000, (4,)))
    schedule = lc.Schedule(begin=0.0, end=0.9, every=1)
    pruning = lc.Pruning(sparsity, pattern=pattern, schedule=schedule, targets=lc.Targets(module="network"))
    dense = count_macs(module.network, data.tensors[0][:1]).total
    trainer(1, pruning).fit(module, DataLoader(data, 2))
    masked = module.network.eval()
    small, _ = lc.shrink(masked, data.tensors[0][:1])
    with torch.no_grad():
        expected, output = masked(data.tensors[0][:2]), small(data.tensors[0][:2])
    difference = float((output - expected).abs().max() / expected.abs().max())
    return count_macs(small, data.tensors[0][:1]).total / dense, difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--sparsity", type=float, default=0.5)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print(f"{'model':32}{'pattern':8}{'MACs left':>10}{'difference':>12}{'seconds':>9}")
    for name in args.models:
        for kind, pattern in PATTERNS.items():
            begin = time.perf_counter()
            left, difference = run(name, pattern, args.sparsity)
            print(f"{name:32}{kind:8}{left:10.3f}{difference:12.1e}{time.perf_counter() - begin:9.0f}", flush=True)


if __name__ == "__main__":
    main()
