"""Packs timm's resnet50, 90 % zeros and 16 values a layer: size against the entropy, speed, memory.

    python tests/benchmarks/packing.py [--rounds 5] [--clusters 16] [--sparsity 0.9] [--nnc]

Weights are random, so what is measured is the coding: the bound is the zero-order entropy of each layer's symbols, with
zero as one of them, and codebooks of float32. Megabytes are those of the dense float32 tensors. Time is processor time
of one thread, file included; memory is growth of the peak resident set in a process of each arm's own.

With ``--nnc``, the reference coder of the standard for neural networks (ISO/IEC 15938-17, ``pip install nncodec``)
codes the same symbols in turns with ours, as integers around zero, with codebooks of float32 beside them.
"""

from __future__ import annotations

import argparse
import ctypes
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm
import torch
from torch import Tensor, nn

import lightning_compress as lc
from tests.benchmarks.interleaved import medians

MB = 1e6


def network(sparsity: float, clusters: int) -> nn.Module:
    """The network, with the same weights in every process."""
    torch.manual_seed(0)
    model = timm.create_model("resnet50")
    for weight in weights(model):
        weight.data = compressed(weight.data, sparsity, clusters)
    return model


def weights(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.ndim > 1]


def compressed(weight: Tensor, sparsity: float, clusters: int) -> Tensor:
    """The smallest set to zero, the others to the middles of quantiles."""
    flat = weight.flatten().clone()
    flat[flat.abs().argsort()[: int(sparsity * len(flat))]] = 0.0
    rest = flat != 0
    ordered = flat[rest].sort().values
    middles = torch.stack([part.median() for part in ordered.chunk(clusters)])
    borders = (middles[1:] + middles[:-1]) / 2
    flat[rest] = middles[torch.bucketize(flat[rest], borders)]
    return flat.view_as(weight)


def over_bound(file: lc.PackedFile, model: nn.Module) -> float:
    """Bytes of the weights in the file, and of its header, over those of their entropy and codebooks."""
    names = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
    header = next(item.num_bytes for item in file.items if item.name == "header")
    total = 0.0
    for weight in weights(model):
        values, counts = weight.detach().unique(return_counts=True)
        total += (counts * (weight.numel() / counts).log2()).sum().item() / 8 + 4 * (len(values) - 1)
    return (header + sum(tensor.num_bytes for tensor in file.tensors if tensor.name in names)) / total


def seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def nnc_symbols(model: nn.Module) -> tuple[dict[str, np.ndarray], int]:
    """Integers of the weights, zero for zero, and the bytes of their codebooks."""
    symbols, num_bytes = {}, 0
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            values, index = parameter.detach().unique(return_inverse=True)
            symbols[name] = (index - int((values < 0).sum())).int().numpy()
            num_bytes += 4 * int((values != 0).sum())
    return symbols, num_bytes


def nnc_arms(model: nn.Module, folder: Path) -> dict[str, Callable[[], object]]:
    """Encoding and decoding by NNC, after its size was printed."""
    from nncodec import nnc

    symbols, num_bytes = nnc_symbols(model)
    path = str(folder / "model.nnc")

    def encode() -> None:
        nnc.compress(symbols, bitstream_path=path, use_dq=False)

    encode()
    decoded = nnc.decompress(path)
    assert all(np.array_equal(decoded[name], values) for name, values in symbols.items())
    print(f"NNC: {(Path(path).stat().st_size + num_bytes) / MB:.3f} MB of weights, codebooks included")
    return {"NNC encode": encode, "NNC decode": lambda: nnc.decompress(path)}


def peak(arm: str, path: Path, args: argparse.Namespace) -> float:
    """Growth of the peak resident set, in MB, in a fresh process."""
    options = ["--sparsity", str(args.sparsity), "--clusters", str(args.clusters), "--peak", arm, "--path", str(path)]
    return float(subprocess.run([sys.executable, __file__, *options], capture_output=True, check=True).stdout)


def measure_peak(arm: str, path: Path, model: nn.Module) -> None:
    with tempfile.TemporaryDirectory() as folder:
        lc.save_packed(nn.Linear(8, 8), Path(folder) / "small")  # loads what a first call loads
        lc.load_packed(Path(folder) / "small")
        ctypes.CDLL(None).malloc_trim(0)  # what is free must not be taken for nothing
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from the present set
        before = peak_set()
        kept = lc.save_packed(model, Path(folder) / "large") if arm == "encode" else lc.load_packed(path)
    print(peak_set() - before)
    del kept


def peak_set() -> float:
    """Peak resident set of this process, in MB (Linux)."""
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--clusters", type=int, default=16)
    parser.add_argument("--nnc", action="store_true", help="measure NNC as well")
    parser.add_argument("--peak", choices=("encode", "decode"))
    parser.add_argument("--path", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = network(args.sparsity, args.clusters)
    if args.peak:
        measure_peak(args.peak, args.path, model)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.packed"
        file = lc.save_packed(model, path)
        state = lc.load_packed(path)
        assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
        dense = file.stages[0].num_bytes / MB
        print(*(f"{stage.name}: {stage.num_bytes / MB:.3f} MB" for stage in file.stages), sep=", ")
        print(*(f"{item.name}: {item.num_bytes / MB:.3f} MB" for item in file.items), sep=", ")
        print(f"weights and header / bound: {over_bound(file, model):.4f}")
        names = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
        num_bytes = sum(tensor.num_bytes for tensor in file.tensors if tensor.name in names)
        print(f"ours: {num_bytes / MB:.3f} MB of weights, codebooks included")
        arms = {"encode": lambda: lc.save_packed(model, path), "decode": lambda: lc.load_packed(path)}
        arms |= nnc_arms(model, Path(folder)) if args.nnc else {}
        results = medians({name: lambda arm=arm: [seconds(arm)] for name, arm in arms.items()}, rounds=args.rounds)
        for name, times in results.items():
            speeds = sorted(dense / duration for duration in times)
            print(f"{name}: {statistics.median(speeds):.0f} MB/s ({speeds[0]:.0f} to {speeds[-1]:.0f})")
        largest = max(tensor.nbytes for tensor in state.values()) / MB
        encoding, decoding = (peak(arm, path, args) for arm in ("encode", "decode"))
        print(f"peak extra memory: encode {encoding:.0f} MB, decode {decoding:.0f} MB, its result included")
        print(f"largest tensor: {largest:.0f} MB")


if __name__ == "__main__":
    main()
