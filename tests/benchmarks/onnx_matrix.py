"""What of timm's networks computes with integers: two steps of training, finalize, export, parity; a Markdown table.

    python tests/benchmarks/onnx_matrix.py [--models resnet18 ...] [--size 224]

Each network starts from scratch, is trained for two steps of quantization-aware training on noise, and is exported to
ONNX. Counted are the operators that ONNX Runtime runs, but for those that only move or convert numbers; parity is the
largest difference of any layer from the model on identical inputs, in steps of its scale.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
import warnings
from pathlib import Path

import timm
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
import lightning_compress.models.networks  # registers the CIFAR ResNets with timm

MODELS = [
    "resnet20_cifar", "resnet56_cifar", "resnet18", "resnet18:zero_init_last=False", "resnet50", "mobilenetv2_100",
    "mobilenetv3_small_100", "efficientnet_lite0", "efficientnet_b0", "densenet121", "convnext_atto",
    "vit_tiny_patch16_224",
]  # fmt: skip


class Module(LightningModule):
    """A LightningModule that knows nothing of this package."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def row(name: str, size: int) -> str:
    """One network's line of the table."""
    torch.manual_seed(0)
    model, _, option = name.partition(":")
    net = timm.create_model(model, num_classes=10, **({"zero_init_last": False} if option else {}))
    size = 32 if "cifar" in model else size
    module = Module(net)
    images = torch.randn(16, 3, size, size)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        callbacks=[lc.QuantizationAwareTraining(schedule=lc.QATSchedule(freeze_observers=1.0, freeze_batch_norm=1.0))],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, DataLoader(TensorDataset(images, torch.arange(16) % 10), batch_size=8))
    quantized = lc.finalize(module, module="net")
    with tempfile.TemporaryDirectory() as folder:
        file = lc.export_onnx(quantized, Path(folder) / "integers.onnx", images[:1])
        floats = lc.export_onnx(lc.float_copy(quantized), Path(folder) / "floats.onnx", images[:1])
    convs, linears = (sum(kind in layer for layer in layers_of(net)) for kind in ("Conv", "Linear"))
    integer, others = file.integers.integer, file.integers.float
    islands = ", ".join(f"{n} {kind}" for kind, n in sorted(others.items())) or "none"
    return (
        f"| {name} | {integer.get('conv', 0)} of {convs} | {integer.get('linear', 0)} of {linears} "
        f"| {integer.get('add', 0)} | {islands} | {max(file.parity.steps.values())} "
        f"| {file.num_bytes / 1e6:.2f} / {floats.num_bytes / 1e6:.2f} |"
    )


def layers_of(net: nn.Module) -> list[str]:
    return [type(module).__name__ for module in net.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--size", type=int, default=224)
    args = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    print("| network | integer convolutions | integer linears | integer additions | operators on floats | parity "
          "| MB, integers / floats |")  # fmt: skip
    print("|---|---|---|---|---|---|---|")
    for name in args.models:
        start = time.perf_counter()
        try:
            print(row(name, args.size), flush=True)
        except ValueError as error:
            print(f"| {name} | {error} |", flush=True)
        print(f"<!-- {time.perf_counter() - start:.0f} s -->", flush=True)


if __name__ == "__main__":
    main()
