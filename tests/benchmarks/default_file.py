"""Accuracy of the default ONNX file under ONNX Runtime's default session options, beside the simulation's.

    python tests/benchmarks/default_file.py --cifar10 DATA/cifar10 --weights cifar10_resnet20.safetensors --mnist DATA
        [--steps 200]

Two networks are quantized to 8 bits: a trained ResNet-20 on CIFAR-10, and a 1-D convolutional network on the 784 pixels
of an MNIST image as a signal, trained here for one epoch. Both are calibrated, and then trained with
QuantizationAwareTraining for some steps. ``full range`` is the file of ``reduce_range=False``: on an x86 CPU without
VNNI its 16-bit sums overflow. 10,000 test images each.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

import torch
from cifar10 import sgd, trainer
from lightning.pytorch import LightningDataModule, seed_everything
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule, MNISTDataModule


class Signal(nn.Sequential):
    """Network of 1-D convolutions, as keyword spotters have them."""

    def __init__(self) -> None:
        widths = (1, 32, 32, 64, 64)
        blocks = [
            nn.Sequential(nn.Conv1d(a, b, 9, stride=4, padding=4, bias=False), nn.BatchNorm1d(b), nn.ReLU())
            for a, b in itertools.pairwise(widths)
        ]
        super().__init__(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images.flatten(1).unsqueeze(1))


def of_model(model: nn.Module, data: LightningDataModule) -> float:
    """Accuracy in percent."""
    right = total = 0
    with torch.no_grad():
        for images, labels in data.test_dataloader():
            right += int((model(images).argmax(1) == labels).sum())
            total += len(labels)
    return 100 * right / total


def of_file(model: nn.Module, images: Tensor, data: LightningDataModule, *, reduce_range: bool) -> float:
    """Accuracy in percent of the exported file in a session with default options."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        lc.export_onnx(model, path, images[:2], reduce_range=reduce_range)
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        return of_model(lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]), data)


def report(name: str, floats: float, quantized: nn.Module, images: Tensor, data: LightningDataModule) -> None:
    quantized = quantized.eval()
    simulated = of_model(quantized, data)
    default, full = (of_file(quantized, images, data, reduce_range=reduced) for reduced in (True, False))
    print(
        f"{name}: FP32 {floats:.2f}, simulated {simulated:.2f}, default file {default:.2f}, full range {full:.2f}",
        flush=True,
    )


def measure(name: str, module: lc.ClassificationModule, data: LightningDataModule, steps: int) -> None:
    data.setup("test")
    images = next(iter(data.train_dataloader()))[0]
    floats = of_model(module.model.eval(), data)
    report(f"{name}, calibrated", floats, lc.calibrate(module.model, [images]), images, data)
    module.train()
    trainer(1, lc.QuantizationAwareTraining(), max_steps=steps).fit(module, datamodule=data)
    report(f"{name}, trained", floats, module.model, images, data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", required=True, help="folder of the images")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--mnist", required=True, help="folder of torchvision's MNIST")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    seed_everything(0)
    digits = MNISTDataModule(args.mnist, batch_size=256)
    digits.setup("fit")
    signal = lc.ClassificationModule(Signal(), 10, optimizer=sgd(0.05))
    trainer(1).fit(signal, datamodule=digits)
    measure("1-D network", signal, digits, args.steps)
    images = CIFAR10DataModule(args.cifar10, batch_size=128)
    resnet = lc.ClassificationModule("resnet20_cifar", 10, optimizer=sgd(0.001), checkpoint=args.weights)
    images.setup("fit")
    measure("ResNet-20", resnet, images, args.steps)


if __name__ == "__main__":
    main()
