"""Accuracy of a ResNet-20 (W8A8) on the 10,000 test images of CIFAR-10 in each runtime, beside the simulation's.

    python tests/benchmarks/runtimes.py --data DATA/cifar10 --weights cifar10_resnet20.safetensors [--steps 100]

The network is trained with QuantizationAwareTraining for some steps: once for ONNX Runtime, OpenVINO and ExecuTorch,
once for TensorRT, whose file is run in ONNX Runtime, and once for LiteRT. Runtimes that are not installed are left out.
Default options of the exporters: on a CPU without VNNI the same file is measured as on any other.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
from cifar10 import sgd, trainer
from lightning.pytorch import seed_everything
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.data import CIFAR10DataModule

Predict = Callable[[Tensor], Tensor]


def onnx_runtime(path: Path) -> Predict:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0])


def openvino(path: Path) -> Predict:
    from openvino import Core

    network = Core().compile_model(path, "CPU")
    return lambda x: torch.from_numpy(network([x.numpy()])[0])


def executorch(path: Path) -> Predict:
    from lightning_compress.export.executorch import load_program

    program = path.read_bytes()
    return lambda x: load_program(program, ((x,), {}))()[0]


def litert(path: Path) -> Predict:
    from lightning_compress.export.litert import LitertNetwork

    network = LitertNetwork(path.read_bytes())
    return lambda x: network.run(((x,), {}))[0]


def exported(model: nn.Module, backend: lc.Backend, folder: Path, images: Tensor) -> Iterator[tuple[str, Predict]]:
    """Runtimes that a model is exported to, and what their files predict."""
    if backend == lc.LiteRT():
        if find_spec("litert_torch"):
            yield "LiteRT", litert(lc.export_litert(model, folder / "model.tflite", images).path)
        return
    yield "ONNX Runtime", onnx_runtime(lc.export_onnx(model, folder / "model.onnx", images, backend=backend).path)
    if backend == lc.OnnxRuntime() and find_spec("openvino"):
        yield "OpenVINO", openvino(lc.export_openvino(model, folder / "openvino.onnx", images).path)
    if backend == lc.OnnxRuntime() and find_spec("executorch"):
        yield "ExecuTorch", executorch(lc.export_executorch(model, folder / "model.pte", images).path)


def measure(arms: dict[str, Predict], data: CIFAR10DataModule) -> tuple[dict[str, float], dict[str, float]]:
    """Accuracy of each arm, and its agreement with the first one in the top-1 class, both in percent."""
    right, same, total = dict.fromkeys(arms, 0), dict.fromkeys(arms, 0), 0
    with torch.no_grad():
        for images, labels in data.test_dataloader():
            classes = {name: predict(images).argmax(1) for name, predict in arms.items()}
            first = next(iter(classes.values()))
            total += len(labels)
            for name, predicted in classes.items():
                right[name] += int((predicted == labels).sum())
                same[name] += int((predicted == first).sum())
    return ({k: 100 * v / total for k, v in counts.items()} for counts in (right, same))


def quantized(args: argparse.Namespace, data: CIFAR10DataModule, backend: lc.Backend) -> nn.Module:
    seed_everything(0)
    module = lc.ClassificationModule("resnet20_cifar", 10, optimizer=sgd(0.001), checkpoint=args.weights)
    trainer(1, lc.QuantizationAwareTraining(backend=backend), max_steps=args.steps).fit(module, datamodule=data)
    return module.model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the images")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args()
    # Files have the batch size of their example inputs, which divides the number of test images.
    data = CIFAR10DataModule(args.data, batch_size=100)
    data.setup("fit")
    data.setup("test")
    images = next(iter(data.test_dataloader()))[0]
    for backend in (lc.OnnxRuntime(), lc.TensorRT(), lc.LiteRT()):
        with tempfile.TemporaryDirectory() as folder:
            model = quantized(args, data, backend)
            arms: dict[str, Predict] = {"simulation": model, **dict(exported(model, backend, Path(folder), images))}
            accuracy, agreement = measure(arms, data)
        for name in arms:
            print(f"for {backend.name}, {name}: {accuracy[name]:.2f} %, same class {agreement[name]:.2f} %", flush=True)


if __name__ == "__main__":
    main()
