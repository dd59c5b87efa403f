"""Table of networks by export targets: what becomes of a W8A8 network in each runtime.

    python tests/benchmarks/runtime_table.py [--size 96] [NETWORK ...]

Networks of timm with random weights and calibrated norms; 12 convolutional ones and 6 transformers by default. Each is
calibrated on noise, once for ONNX Runtime, OpenVINO and ExecuTorch, and once for TensorRT, whose file is run in ONNX
Runtime for its numbers alone. A row has the SQNR of the outputs to the simulation in dB (with the range of the weights
reduced as by default, so that the file computes the same on every CPU), the largest difference of an activation on
identical inputs in LSB, the bytes, the median latency with quartiles in ms on one thread, and the number of calls that
stay in FP32; or the sentence with which the exporter refuses. The first row of a network is its FP32 file.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import lightning_compress as lc
import lightning_compress.models.networks  # registers resnet20_cifar with timm
from lightning_compress.export.exported_file import ExportedFile

CONVOLUTIONAL = (
    "resnet20_cifar", "resnet18", "resnet50", "mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_lite0",
    "efficientnet_b0", "ghostnet_050", "densenet121", "regnetx_002", "mnasnet_small", "convnext_atto",
)  # fmt: skip
TRANSFORMERS = (
    "vit_tiny_patch16_224", "deit_tiny_patch16_224", "xcit_nano_12_p16_224", "levit_128s", "cait_xxs24_224",
    "mobilevitv2_050",
)  # fmt: skip


def network(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A network, the norms of which have the statistics of its inputs."""
    torch.manual_seed(0)
    fixed = name in TRANSFORMERS and "mobilevit" not in name
    images = torch.randn(8, 3, *(2 * [224 if fixed else 32 if "cifar" in name else size]))
    model = timm.create_model(name, num_classes=10).train()
    with torch.no_grad():
        for _ in range(3):
            model(images)
    return model.eval(), images


def sqnr(expected: Tensor, actual: Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB."""
    return float(10 * torch.log10(expected.square().sum() / (expected - actual).square().sum().clamp(min=1e-30)))


def of_onnx(path: Path, images: Tensor) -> Tensor:
    from lightning_compress.export.onnx.runtime import run, session

    return run(session(path), ((images,), {}))[0]


def of_openvino(path: Path, images: Tensor) -> Tensor:
    from openvino import Core

    compiled = Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return torch.from_numpy(compiled([images.numpy()])[0])


def of_executorch(path: Path, images: Tensor) -> Tensor:
    from lightning_compress.export.executorch import load_program

    return load_program(path.read_bytes(), images)()[0]


Export = Callable[[nn.Module, Path, Any], ExportedFile]
Run = Callable[[Path, Tensor], Tensor]
TENSORRT = partial(lc.export_onnx, backend=lc.TensorRT())
TARGETS: dict[str, tuple[str, Export, Run, str]] = {
    "ONNX Runtime": ("onnxruntime", lc.export_onnx, of_onnx, "onnx"),
    "OpenVINO": ("openvino", lc.export_openvino, of_openvino, "onnx"),
    "ExecuTorch": ("executorch", lc.export_executorch, of_executorch, "pte"),
    "TensorRT, in ONNX Runtime": ("onnxruntime", TENSORRT, of_onnx, "onnx"),
}


def rows(name: str, size: int, folder: Path) -> Iterator[str]:
    model, images = network(name, size)
    with torch.no_grad():
        plain = model(images)
    yield row(name, "FP32", lc.export_onnx(model, folder / "float.onnx", images[:2]), plain, of_onnx, images)
    for target, (package, export, run, suffix) in TARGETS.items():
        if find_spec(package) is None:
            continue
        try:
            backend = lc.TensorRT() if export is TENSORRT else lc.OnnxRuntime()
            quantized = lc.calibrate(model, [images], backend=backend)
            with torch.no_grad():
                expected = quantized(images)
            # ExecuTorch's batch size is that of the example.
            example = images if suffix == "pte" else images[:2]
            yield row(name, target, export(quantized, folder / f"model.{suffix}", example), expected, run, images)
        except ValueError as error:
            yield f"| {name} | {target} | {error} | | | | |"


def row(name: str, target: str, file: ExportedFile, expected: Tensor, run: Run, images: Tensor) -> str:
    lower, median, upper = (1e3 * seconds for seconds in file.latency_quartiles)
    numbers = [
        f"{sqnr(expected, run(file.path, images)):.1f}",
        "" if file.steps is None else str(max(file.steps.values())),
        f"{file.num_bytes:,}",
        f"{median:.2f} ({lower:.2f} to {upper:.2f})",
        str(len(file.unquantized_ops)) if file.steps else "",
    ]
    return f"| {name} | {target} | {' | '.join(numbers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*CONVOLUTIONAL, *TRANSFORMERS], metavar="NETWORK")
    parser.add_argument("--size", type=int, default=96, help="height and width of the images where they are free")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| network | target | SQNR, dB | largest LSB | bytes | latency, ms | calls in FP32 |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            for line in rows(name, args.size, Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
