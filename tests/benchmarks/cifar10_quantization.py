"""Accuracy of a quantized ResNet-20 on CIFAR-10 after fine-tuning, measured on the exported file, over seeds.

    python tests/benchmarks/cifar10_quantization.py --root DATA --weights cifar10_resnet20.safetensors
        [--runs float W8A8 W4A8 W4A4] [--seeds 0 1 2] [--epochs 2] [--learning-rate 0.01] [--distilled]
        [--held-out 5000]
        [--compile]

SGD with momentum 0.9, weight decay 1e-4, learning rate 0.01 to 0 along a cosine per step, batch 128, shifts of up to
4 pixels and mirror images, all 50,000 training images. Below 8 bits scales are learned (LSQ), and the first convolution
and the last linear layer keep 8 bits. The accuracy is that of the ONNX file in ONNX Runtime on the 10,000 test images,
once, at the end; beside it stands the simulation's. With --distilled the network also learns from what its own dense
weights say (Hinton's loss at temperature 4, nine tenths). With --held-out, so many of the training images are not
trained on and the accuracy is on them: for choosing.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from cifar10 import accuracy, distilled, options, over_seeds, resnet20, trainer
from torch import nn
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule

FIRST, LAST, POOL = "*model.conv1", "*model.linear", "*model.pool"  # also inside of a DistillationModule


def callback(run: str, args: argparse.Namespace) -> lc.QuantizationAwareTraining:
    """``W4A8`` as a callback."""
    weights, activations = (int(bits) for bits in run.removeprefix("W").split("A"))
    return lc.QuantizationAwareTraining(
        weights={FIRST: lc.Int(8), LAST: lc.Int(8), "*": integers(weights)},
        activations={FIRST: lc.Int(8), LAST: lc.Int(8), POOL: lc.Int(8), "*": integers(activations)},
        schedule=lc.QATSchedule(freeze_observers=args.freeze_observers, freeze_batch_norm=args.freeze_batch_norm),
    )


def integers(bits: int) -> lc.Int:
    return lc.Int(8) if bits == 8 else lc.Int(bits, observer=lc.Learned())


def run(bits: str, data: CIFAR10DataModule, args: argparse.Namespace) -> tuple[float, str]:
    """Accuracy in percent of the file (of the float model, where that is what is trained), and of the simulation."""
    module = resnet20(args)
    callbacks = [] if bits == "float" else [callback(bits, args)]
    trainer(args.epochs, *callbacks).fit(distilled(module, args), datamodule=data)
    if bits == "float":
        return accuracy(module, data, args), ""
    data.setup("validate" if args.held_out else "test")
    loader = data.val_dataloader() if args.held_out else data.test_dataloader()
    images = next(iter(loader))[0][:8]
    deployed = lc.finalize(module.cpu(), module="model", example_inputs=images)
    simulated = accuracy(lc.ClassificationModule(deployed, 10), data, args)
    return of_file(deployed.cpu(), images, loader), f"simulated {simulated:.2f} %, "


def of_file(deployed: nn.Module, images: torch.Tensor, loader: DataLoader) -> float:
    """Accuracy of the exported file in ONNX Runtime, in percent."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        lc.export_onnx(deployed, path, images, reduce_range=False)
        session_options = onnxruntime.SessionOptions()
        # Without VNNI the fast kernels overflow with the full range; the precise ones compute what CPUs with it do.
        session_options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        right = total = 0
        for images, labels in loader:
            logits = torch.from_numpy(session.run(None, {name: images.numpy()})[0])
            right += int((logits.argmax(1) == labels).sum())  # of equal logits, PyTorch's metrics take the same one
            total += len(labels)
    return 100 * right / total


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--runs", nargs="+", default=["float", "W8A8", "W4A8", "W4A4"])
    parser.add_argument("--freeze-observers", type=float, default=0.5)
    parser.add_argument("--freeze-batch-norm", type=float, default=0.75)
    parser.add_argument("--distilled", action="store_true", help="distil the network from its own dense weights")
    args = parser.parse_args()
    data = CIFAR10DataModule(args.root, val_size=args.held_out)
    for bits in args.runs:
        over_seeds(bits, lambda bits=bits: run(bits, data, args), args.seeds)


if __name__ == "__main__":
    main()
