"""Measurements of a run that reports are made of: sizes, layers, intervals and latencies."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

import lightning_compress as lc
from lightning_compress.cli.energy import joules_per_call
from lightning_compress.profiling import count_macs, interleaved_durations
from lightning_compress.quantization.insertion import quantizers_of
from lightning_compress.reporting.report_records import LayerResult, SizeStage, Timing, WeightHistogram
from lightning_compress.reporting.sparsity import count_weights
from lightning_compress.targets import Targets
from lightning_compress.trainer.batches import num_samples_of

NUM_HISTOGRAMS = 9
_NUM_BINS = 61
_FEWEST_CALLS, _MOST_CALLS, _SECONDS = 5, 200, 10.0


def dense_bytes(module: nn.Module) -> int:
    """Return the bytes of the tensors in a state dict, shared ones once."""
    tensors = {tensor.data_ptr() or id(tensor): tensor for tensor in module.state_dict().values()}
    return sum(tensor.nbytes for tensor in tensors.values())


def wilson_interval(fraction: float, num_samples: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a fraction of independent samples. Wilson 1927.

    >>> lower, upper = wilson_interval(0.5, 100)
    >>> f"{lower:.4f} to {upper:.4f}"
    '0.4038 to 0.5962'
    """
    from scipy.stats import binomtest  # type: ignore[import-untyped]  # takes a second to import

    lower, upper = binomtest(round(fraction * num_samples), num_samples).proportion_ci(method="wilson")
    return float(lower), float(upper)


def intervals_of(metrics: Mapping[str, float], num_samples: int | None) -> dict[str, tuple[float, float]]:
    """Return the intervals of accuracies that are a whole number of samples: means over classes or pixels are not."""
    if not num_samples:
        return {}
    return {
        name: wilson_interval(value, num_samples)
        for name, value in metrics.items()
        if "acc" in name.lower() and 0 <= value <= 1
        if abs(value * num_samples - round(value * num_samples)) < 1e-3
    }


def macs_per_sample(module: nn.Module, inputs: Any) -> int | None:
    """Return the multiply-accumulates of one sample, or ``None`` if the module cannot be run for it."""
    with suppress(Exception):  # a foreign module may reject anything; the count is a detail of the report
        return count_macs(module, inputs).total // max(batch_size_of(inputs), 1)
    return None


def batch_size_of(inputs: Any) -> int:
    """Return the batch size of captured arguments."""
    size = num_samples_of(inputs)
    return 1 if size is None else size


def first_sample(inputs: Any) -> Any:
    """Return captured arguments with one sample instead of a batch."""
    size = batch_size_of(inputs)
    return tree_map_only(Tensor, lambda t: t[:1] if t.ndim and len(t) == size else t, inputs)


def time_calls(calls: Mapping[str, Callable[[], Any]], *, batch_size: int, runtime: str) -> dict[str, Timing]:
    """Measure the latency of several calls, interleaved in one run, and their energy where it can be read.

    Args:
        calls: Name to call.
        batch_size: Number of samples in a call.
        runtime: Name of the runtime.
    """
    num_calls = _num_calls(calls.values())
    durations = interleaved_durations(calls, repeats=num_calls)
    return {
        name: Timing(
            median=statistics.median(seconds),
            p95=statistics.quantiles(seconds, n=20)[-1],
            num_calls=len(seconds),
            batch_size=batch_size,
            num_threads=1,
            runtime=runtime,
            joules=joules_per_call(calls[name], num_calls=num_calls),
        )
        for name, seconds in durations.items()
    }


def _num_calls(calls: Iterable[Callable[[], Any]]) -> int:
    """Return the number of calls that take a few seconds, after two calls of each: the first ones allocate."""
    seconds = 0.0
    for call in calls:
        call()
        begin = time.perf_counter()
        call()
        seconds += time.perf_counter() - begin
    return min(max(int(_SECONDS / max(seconds, 1e-9)), _FEWEST_CALLS), _MOST_CALLS)


def module_call(module: nn.Module, inputs: Any) -> Callable[[], Any]:
    """Return a call of a module without gradients."""

    def call() -> None:
        with torch.inference_mode():
            module(*inputs[0], **inputs[1])

    return call


def layer_results(finalized: nn.Module, packed: lc.PackedFile | None) -> tuple[LayerResult, ...]:
    """Count the weights of the layers of a finalized network.

    Args:
        finalized: Network from :func:`lightning_compress.finalize`.
        packed: Its packed file, if one was written.
    """
    bits = {ref.name: ref.quantizer.spec.bits for ref in quantizers_of(finalized) if ref.quantizer.is_weight}
    num_bytes = {} if packed is None else {tensor.name: tensor.num_bytes for tensor in packed.tensors}
    return tuple(
        replace(layer_result(t.name, t.parameter), bits=bits.get(t.name), num_bytes=num_bytes.get(t.name))
        for t in Targets().all_stored(finalized)
    )


def layer_result(name: str, weight: Tensor) -> LayerResult:
    """Count the weights, zeros and distinct values of a tensor."""
    count = count_weights(name, weight)
    num_values = weight.detach().unique().numel()
    return LayerResult(name, tuple(weight.shape), count.num_weights, count.num_zeros, num_values)


def largest_weights(module: nn.Module) -> dict[str, Tensor]:
    """Return copies of the largest weights of layers, by name in the module."""
    targets = sorted(Targets().all_stored(module), key=lambda target: -target.parameter.numel())[:NUM_HISTOGRAMS]
    return {target.name: target.parameter.detach().cpu().clone() for target in targets}


def weight_histograms(before: Mapping[str, Tensor], after: nn.Module) -> tuple[WeightHistogram, ...]:
    """Return histograms of weights before and after compression.

    Args:
        before: Weights by name.
        after: Finalized network.
    """
    weights = {name: p.detach().float().cpu() for name, p in after.named_parameters() if name in before}
    found = []
    for name, weight in weights.items():
        limit = float(max(before[name].abs().max(), weight.abs().max())) or 1.0
        nonzero = weight[weight != 0]
        old, new = (
            tuple(map(int, torch.histc(tensor.float(), _NUM_BINS, -limit, limit).tolist()))
            for tensor in (before[name], nonzero)
        )
        found.append(WeightHistogram(name, -limit, limit, old, new, weight.numel() - nonzero.numel()))
    return tuple(found)


def size_stages(packed: lc.PackedFile | None, techniques: Iterable[str], dense: int) -> tuple[SizeStage, ...]:
    """Return the size after each stage, with the techniques that the stages of a packed file come from.

    Args:
        packed: Packed file, if one was written.
        techniques: Names of the techniques of the run.
        dense: Bytes of the network before channels were removed.
    """
    first = SizeStage("dense", dense)
    if packed is None:
        return (first,)
    kinds = set(techniques)
    names = [name for kind, name in _CODED.items() if kind in kinds]
    stages = {item.name: item.num_bytes for item in packed.stages}
    # Scales make a quantized network larger than the dense one, so that only removed channels make it smaller.
    removed = [SizeStage("channels removed", stages["dense"])] if stages["dense"] < dense else []
    zeros = [SizeStage("zeros left out", stages["+ prune"])] if "Pruning" in kinds else []
    indexed = [SizeStage(" and ".join(names), stages["+ cluster"])] if names else []
    return (first, *removed, *zeros, *indexed, SizeStage("entropy-coded", stages["+ entropy coding"]))


_QAT = "QuantizationAwareTraining"
_CODED = {"WeightClustering": "clustered", "SizeBudget": "quantized to a size", _QAT: "quantized"}


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
