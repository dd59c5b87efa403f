"""Latency of timm networks on this machine."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from lightning_compress.models import networks  # noqa: F401  (registers its networks with timm)
from lightning_compress.profiling import Timer, compare_latencies

# Networks that are in memory at the same time.
_GROUP_SIZE = 16
_ROUNDS = 7


def latencies(input_sizes: Mapping[str, int], *, timer: Timer = time.perf_counter, **kwargs: Any) -> dict[str, float]:
    """Measure the latency of timm networks for one image in PyTorch, on the CPU in FP32 with one thread.

    Up to 16 networks at a time are interleaved, so that other load on the machine affects all of them alike.

    Args:
        input_sizes: Height and width of the image, by timm name.
        timer: Clock in seconds.
        **kwargs: Further arguments of ``timm.create_model``, for all networks.

    Returns:
        Median latency in seconds, by timm name.
    """
    names, result = list(input_sizes), dict[str, float]()
    for start in range(0, len(names), _GROUP_SIZE):
        group = names[start : start + _GROUP_SIZE]
        models = {name: _create_in_eval_mode(name, kwargs) for name in group}
        result |= _medians(models, [input_sizes[name] for name in group], timer)
    return result


def _create_in_eval_mode(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(name, **kwargs).eval()


def _medians(models: Mapping[str, nn.Module], input_sizes: Sequence[int], timer: Timer) -> dict[str, float]:
    images = {name: torch.zeros(1, 3, size, size) for name, size in zip(models, input_sizes, strict=True)}
    calls = {name: partial(model, images[name]) for name, model in models.items()}
    with torch.inference_mode():
        return compare_latencies(calls, repeats=_ROUNDS, warm_up=1, timer=timer)
