"""Latency of an integer ONNX file against ONNX Runtime's own quantizer on the same weights, and against floats.

    python tests/benchmarks/onnx_latency.py [--model resnet18] [--size 224] [--batch 1] [--rounds 15] [--full-range]

One thread, interleaved. Both integer files have unsigned activations and signed per-channel weights, in 7 bits unless
--full-range: without VNNI, 8 bits overflow. ``executorch`` is measured where it is installed, against its own
float file.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from interleaved import medians, onnx_runs, ratio

import lightning_compress as lc
import lightning_compress.models.networks  # registers resnet20_cifar with timm


def quantize_static(floats: Path, path: Path, *, reduce_range: bool) -> None:
    """The file that ONNX Runtime's quantizer makes of a float file."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = [{"x": IMAGES.numpy()}]

        def get_next(self) -> dict | None:
            return self.left.pop() if self.left else None

    prepared = path.with_suffix(".prepared.onnx")
    quant_pre_process(str(floats), str(prepared))
    quantize_static(
        str(prepared),
        str(path),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=reduce_range,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--full-range", action="store_true")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    global IMAGES
    IMAGES = torch.randn(args.batch, 3, args.size, args.size)
    net = timm.create_model(args.model).eval()
    quantized = lc.calibrate(net, [IMAGES])
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("float", "ort", "ours")}
        lc.export_onnx(net, files["float"], IMAGES)
        ours = lc.export_onnx(quantized, files["ours"], IMAGES, reduce_range=not args.full_range)
        quantize_static(files["float"], files["ort"], reduce_range=not args.full_range)
        arms = {name: onnx_runs(path, IMAGES.numpy()) for name, path in files.items()}
        pairs = [("ours", "ort"), ("float", "ort"), ("float", "ours")]
        try:
            arms |= executorch(net, quantized, Path(folder))
            pairs.append(("executorch float", "executorch ours"))
        except ImportError as error:
            print(f"executorch: not measured ({error})")
        results = medians(arms, rounds=args.rounds)
        for name, path in files.items():
            print(f"{name:6} {1e3 * statistics.median(results[name]):7.2f} ms  {path.stat().st_size / 1e6:6.2f} MB")
    print(f"{args.model}, {args.size}x{args.size}, batch {args.batch}, one thread; {ours.integers}")
    for first, second in pairs:
        print(f"{first} / {second}: {ratio(results, first, second)}")


def executorch(net: torch.nn.Module, quantized: torch.nn.Module, folder: Path) -> dict[str, Callable[[], list[float]]]:
    """The same for ExecuTorch's XNNPACK delegate."""
    from executorch.runtime import Runtime

    arms = {}
    for name, model in {"float": net, "ours": quantized}.items():
        path = folder / f"{name}.pte"
        lc.export_executorch(model, path, IMAGES)
        method = Runtime.get().load_program(path).load_method("forward")

        def run(method: object = method) -> list[float]:
            times = []
            for _ in range(10):
                start = time.perf_counter()
                method.execute([IMAGES])
                times.append(time.perf_counter() - start)
            return times

        arms[f"executorch {name}"] = run
    return arms


if __name__ == "__main__":
    main()
