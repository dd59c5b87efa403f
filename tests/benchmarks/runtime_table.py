"""Table of networks by export targets: what becomes of a W8A8 network in each runtime.

    python tests/benchmarks/runtime_table.py [--size 96] [NETWORK ...]

Networks of timm with random weights and calibrated norms; 12 convolutional ones and 6 transformers by default. Each is
calibrated on noise, for the backend of its target; the file for TensorRT is run in ONNX Runtime for its numbers alone.
A row has the SQNR of the outputs in dB, to the simulation and to the FP32 model (with the range of the weights reduced
as by default, so that the file computes the same on every CPU), the largest difference of an activation on identical
inputs in LSB, the bytes, the median latency with quartiles in ms on one thread, and the number of calls that stay in
FP32; then bytes and latency of the FP32 model in the same runtime. A row may have the sentence with which an exporter
refuses instead. Files for Core ML have INT8 weights and run on a Mac only. Where NNCF is installed, its quantization of
the same model runs in OpenVINO as well. Batches have four images. Targets that are not installed are left out.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
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
from lightning_compress.profiling import latency_quartiles

CONVOLUTIONAL = (
    "resnet20_cifar", "resnet18", "resnet50", "mobilenetv2_050", "mobilenetv3_small_050", "efficientnet_lite0",
    "efficientnet_b0", "ghostnet_050", "densenet121", "regnetx_002", "mnasnet_small", "convnext_atto",
)  # fmt: skip
TRANSFORMERS = (
    "vit_tiny_patch16_224", "pit_ti_224", "xcit_nano_12_p16_224", "levit_128s", "cait_xxs24_224",
    "mobilevitv2_050",
)  # fmt: skip


def network(name: str, size: int) -> tuple[nn.Module, Tensor]:
    """A network, the norms of which have the statistics of its inputs, and random weights, none of them zero."""
    torch.manual_seed(0)
    fixed = name in TRANSFORMERS and "mobilevit" not in name
    images = torch.randn(4, 3, *(2 * [224 if fixed else 32 if "cifar" in name else size]))
    model = timm.create_model(name, num_classes=10).train()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
                module.weight.uniform_(0.5, 1.5)
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


def of_litert(path: Path, images: Tensor) -> Tensor:
    from lightning_compress.export.litert import LitertNetwork

    return LitertNetwork(path.read_bytes()).run(((images,), {}))[0]


@dataclass(frozen=True)
class Target:
    """An export, and the package without which it is left out."""

    package: str
    export: Callable[[nn.Module, Path, Any], ExportedFile]
    run: Callable[[Path, Tensor], Tensor] | None  # None where files do not run here
    suffix: str
    backend: lc.Backend = field(default_factory=lc.OnnxRuntime)


TARGETS = {
    "ONNX Runtime": Target("onnxruntime", lc.export_onnx, of_onnx, ".onnx"),
    "OpenVINO": Target("openvino", lc.export_openvino, of_openvino, ".onnx"),
    "TensorRT, in ONNX Runtime": Target(
        "onnxruntime", partial(lc.export_onnx, backend=lc.TensorRT()), of_onnx, ".onnx", lc.TensorRT()
    ),
    "ExecuTorch": Target("executorch", lc.export_executorch, of_executorch, ".pte"),
    "LiteRT": Target("litert_torch", lc.export_litert, of_litert, ".tflite", lc.LiteRT()),
    "Core ML, weights": Target("coremltools", lc.export_coreml, None, ".mlpackage"),
}


def rows(name: str, size: int, folder: Path) -> Iterator[str]:
    model, images = network(name, size)
    with torch.no_grad():
        plain = model(images)
    for title, target in TARGETS.items():
        if find_spec(target.package) is None:
            continue
        try:
            quantized = lc.calibrate(model, [images], backend=target.backend)
            file = target.export(quantized, folder / f"model{target.suffix}", images)
            ratios = ()
            if target.run is not None:
                with torch.no_grad():
                    expected = quantized(images)
                actual = target.run(file.path, images)
                ratios = (sqnr(expected, actual), sqnr(plain, actual))
            yield row(name, title, file, ratios, target.export(model, folder / f"float{target.suffix}", images))
        except ValueError as error:
            yield f"| {name} | {title} | {error} | | | | | | | |"
    if find_spec("nncf") and find_spec("openvino"):
        yield row_of_nncf(name, model, plain, images, folder)


def row(name: str, title: str, file: ExportedFile, ratios: Sequence[float], plain: ExportedFile) -> str:
    numbers = [
        *(f"{ratio:.1f}" for ratio in ratios),
        *("" for _ in range(2 - len(ratios))),
        "" if file.steps is None else str(max(file.steps.values())),
        f"{file.num_bytes:,}",
        milliseconds(file.latency_quartiles),
        str(len(file.unquantized_ops)),
        f"{plain.num_bytes:,}",
        milliseconds(plain.latency_quartiles),
    ]
    return f"| {name} | {title} | {' | '.join(numbers)} |"


def row_of_nncf(name: str, model: nn.Module, plain: Tensor, images: Tensor, folder: Path) -> str:
    """The row of the network as NNCF quantizes it for OpenVINO."""
    import nncf
    import openvino

    source = lc.export_onnx(model, folder / "source.onnx", images).path
    quantized = nncf.quantize(openvino.Core().read_model(source), nncf.Dataset([images.numpy()]), subset_size=1)
    file = folder / "nncf.xml"
    openvino.save_model(quantized, file, compress_to_fp16=False)
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    request = openvino.Core().compile_model(quantized, "CPU", options).create_infer_request()
    seconds = latency_quartiles(lambda: request.infer([images.numpy()]))
    ratio, num_bytes = sqnr(plain, of_openvino(file, images)), file.with_suffix(".bin").stat().st_size
    return (
        f"| {name} | OpenVINO, by NNCF | | {ratio:.1f} | | {file.stat().st_size + num_bytes:,} | "
        f"{milliseconds(seconds)} | | | |"
    )


def milliseconds(quartiles: tuple[float, float, float] | None) -> str:
    if quartiles is None:
        return ""
    lower, median, upper = (1e3 * seconds for seconds in quartiles)
    return f"{median:.2f} ({lower:.2f} to {upper:.2f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=[*CONVOLUTIONAL, *TRANSFORMERS], metavar="NETWORK")
    parser.add_argument("--size", type=int, default=96, help="height and width of the images where they are free")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    print("| network | target | SQNR, dB | to FP32, dB | largest LSB | bytes | latency, ms | calls in FP32 ", end="")
    print("| FP32 bytes | FP32 latency, ms |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    for name in args.networks:
        with tempfile.TemporaryDirectory() as folder:
            for line in rows(name, args.size, Path(folder)):
                print(line, flush=True)


if __name__ == "__main__":
    main()
