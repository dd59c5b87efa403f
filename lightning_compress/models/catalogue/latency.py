"""How long networks take on this machine."""

from __future__ import annotations

import random
import statistics
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

import timm
import torch
from torch import nn

from lightning_compress.models import networks  # noqa: F401  (registers its networks with timm)

# Networks that are kept in memory at a time.
_TOGETHER = 16
_ROUNDS = 7


def latencies(input_sizes: Mapping[str, int], **kwargs: Any) -> dict[str, float]:
    """Median seconds that PyTorch takes for one image on the CPU, in float32 with one thread and random weights.

    Up to 16 networks at a time take turns in random order, so that what else the machine does hits all alike.

    Args:
        input_sizes: Height and width of the image, by timm name.
        kwargs: What all networks are made with.
    """
    names, found, num_threads = list(input_sizes), dict[str, float](), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        for start in range(0, len(names), _TOGETHER):
            group = names[start : start + _TOGETHER]
            found |= _medians({name: _made(name, kwargs) for name in group}, [input_sizes[name] for name in group])
    finally:
        torch.set_num_threads(num_threads)
    return found


def _made(name: str, kwargs: Mapping[str, Any]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        return timm.create_model(name, **kwargs).eval()


def _medians(models: Mapping[str, nn.Module], input_sizes: Sequence[int]) -> dict[str, float]:
    images = {name: torch.zeros(1, 3, size, size) for name, size in zip(models, input_sizes, strict=True)}
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in models}
    with torch.inference_mode():
        for number in range(_ROUNDS + 1):
            for name in order.sample(list(models), len(models)):
                start = perf_counter()
                models[name](images[name])
                if number:  # the first round warms up
                    times[name].append(perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in times.items()}
