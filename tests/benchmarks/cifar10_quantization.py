"""Accuracy of a quantized ResNet-20 on CIFAR-10 after fine-tuning, measured on the exported file, over seeds.

    python tests/benchmarks/cifar10_quantization.py --root DATA --weights cifar10_resnet20.safetensors
        [--runs float W8A8 W4A8 W4A4] [--seeds 0 1 2] [--epochs 2] [--learning-rate 0.01] [--compile]

SGD with momentum 0.9, weight decay 1e-4, learning rate 0.01 to 0 along a cosine per step, batch 128, shifts of up to
4 pixels and mirror images, all 50,000 training images. Below 8 bits scales are learned (LSQ), and the first convolution
and the last linear layer keep 8 bits. The accuracy is that of the ONNX file in ONNX Runtime on the 10,000 test images,
once, at the end; beside it stands the simulation's.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule

FIRST, LAST = "model.conv1", "model.linear"


def callback(run: str, args: argparse.Namespace) -> lc.QuantizationAwareTraining:
    """``W4A8`` as a callback."""
    weights, activations = (int(bits) for bits in run.removeprefix("W").split("A"))
    return lc.QuantizationAwareTraining(
        weights={FIRST: lc.Int(8), LAST: lc.Int(8), "*": integers(weights)},
        activations={FIRST: lc.Int(8), LAST: lc.Int(8), "model.pool": lc.Int(8), "*": integers(activations)},
        schedule=lc.QATSchedule(freeze_observers=args.freeze_observers, freeze_batch_norm=args.freeze_batch_norm),
    )


def integers(bits: int) -> lc.Int:
    return lc.Int(8) if bits == 8 else lc.Int(bits, observer=lc.Learned())


def fit(run: str, data: CIFAR10DataModule, args: argparse.Namespace) -> tuple[float, float | None]:
    """Test accuracy in percent: of the simulation (or the float model), and of the file."""
    module = lc.ClassificationModule("resnet20_cifar", 10, optimizer=sgd(args.learning_rate), checkpoint=args.weights)
    if args.compile:
        module.model.compile()
    trainer = Trainer(
        max_epochs=args.epochs,
        accelerator="auto",
        devices=1,
        callbacks=[] if run == "float" else [callback(run, args)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    simulated = 100 * trainer.test(module, datamodule=data, verbose=False)[0]["test/acc"]
    return simulated, None if run == "float" else of_file(module, data)


def sgd(learning_rate: float) -> object:
    return lambda params: torch.optim.SGD(params, lr=learning_rate, momentum=0.9, weight_decay=1e-4)


def of_file(module: lc.ClassificationModule, data: CIFAR10DataModule) -> float:
    """Accuracy of the exported file in ONNX Runtime, in percent."""
    import onnxruntime

    module = module.cpu()
    module.model._compiled_call_impl = None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        lc.export_onnx(lc.finalize(module, module="model"), path, next(iter(data.test_dataloader()))[0][:8])
        options = onnxruntime.SessionOptions()
        # Without VNNI the fast kernels overflow on this kind of CPU; the precise ones compute what the file says.
        options.add_session_config_entry("session.x64quantprecision", "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
        right = total = 0
        for images, labels in data.test_dataloader():
            right += int((session.run(None, {name: images.numpy()})[0].argmax(1) == labels.numpy()).sum())
            total += len(labels)
    return 100 * right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--runs", nargs="+", default=["float", "W8A8", "W4A8", "W4A4"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--freeze-observers", type=float, default=0.5)
    parser.add_argument("--freeze-batch-norm", type=float, default=0.75)
    parser.add_argument("--compile", action="store_true", help="torch.compile the network, which is faster on a CPU")
    args = parser.parse_args()
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    data = CIFAR10DataModule(args.root, val_size=0)
    for run in args.runs:
        results = []
        for seed in args.seeds:
            seed_everything(seed, verbose=False)
            start = time.perf_counter()
            simulated, file = fit(run, data, args)
            results.append(simulated if file is None else file)
            said = "" if file is None else f", file {file:.2f} %"
            print(f"{run} seed {seed}: {simulated:.2f} %{said} ({time.perf_counter() - start:.0f} s)", flush=True)
        mean, spread = statistics.mean(results), statistics.stdev(results) if len(results) > 1 else 0.0
        print(f"{run}: mean {mean:.2f} %, standard deviation {spread:.2f}, seeds {args.seeds}", flush=True)


if __name__ == "__main__":
    main()
