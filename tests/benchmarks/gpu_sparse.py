"""Latency of a 2:4 sparse vision transformer on sparse tensor cores against the dense one, in float16."""

from __future__ import annotations

import statistics
import warnings
from typing import Any

import torch
from gpu_steps import Repeated, Setting, release_memory
from step_cost import STEADY, Plain, quiet_trainer
from torch import Tensor, nn
from torch.sparse import SparseSemiStructuredTensor

import lightning_compress as lc
from lightning_compress.arguments import reason
from lightning_compress.profiling import interleaved_durations, quartiles


def pruned(setting: Setting, accelerator: str) -> nn.Module:
    """The network after three steps with 2:4 masks on its linear layers."""
    pruning = lc.Pruning(0.5, pattern=lc.NM(2, 4), schedule=STEADY, targets=lc.Targets(types=(nn.Linear,)))
    module = Plain(setting.network())
    batch = setting.images(8), torch.arange(8) % setting.num_classes
    quiet_trainer([pruning], accelerator).fit(module, Repeated(batch, 3))
    return module.net.cpu()


def latency(setting: Setting, accelerator: str, batch: int, repeats: int) -> dict[str, Any]:
    """Latencies of a batch, the layers that stay dense with their reasons, and the difference of the outputs."""
    release_memory()
    device = "cuda" if accelerator == "gpu" else "cpu"
    net, images = pruned(setting, accelerator).to(device, torch.float16), setting.images(batch).to(device).half()
    dense = lc.finalize(net)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            sparse = lc.finalize(net, semi_structured=True, example_inputs=images)
        except ValueError as error:
            return {"not_measured": reason(error), "dense_ms": 1e3 * statistics.median(times(dense, images, repeats))}
    said = [str(each.message) for each in caught if "stay dense" in str(each.message)]
    with torch.inference_mode():
        ours, theirs = sparse(images).float(), dense(images).float()
        durations = interleaved_durations(
            {"dense": lambda: dense(images), "sparse": lambda: sparse(images)}, repeats=repeats
        )
    lower, middle, upper = quartiles([d / s for d, s in zip(durations["dense"], durations["sparse"], strict=True)])
    return {
        "ms": {name: 1e3 * statistics.median(seconds) for name, seconds in durations.items()},
        "times_faster": middle,
        "quartiles": [lower, upper],
        "repeats": repeats,
        "sparse_layers": sum(isinstance(p, SparseSemiStructuredTensor) for p in sparse.parameters()),
        "linear_layers": sum(isinstance(layer, nn.Linear) for layer in sparse.modules()),
        "stay_dense": said,
        "largest_difference": float((ours - theirs).abs().max() / theirs.abs().max()),
    }


def times(net: nn.Module, images: Tensor, repeats: int) -> list[float]:
    """Durations of a forward pass in seconds."""
    with torch.inference_mode():
        return interleaved_durations({"": lambda: net(images)}, repeats=repeats)[""]
