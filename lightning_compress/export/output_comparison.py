"""What is measured of the outputs and the speed of a file."""

from __future__ import annotations

import contextlib
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lightning_compress.arguments import Arguments
from lightning_compress.quantization.finalize import finalize


def tensors(values: Any) -> list[Tensor]:
    """The tensors in nested lists, tuples and dicts."""
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def outputs_of_model(model: nn.Module, inputs: Arguments) -> list[Tensor]:
    """What a model, or its simulation of integers, computes in eval mode; the model stays as it is."""
    args, kwargs = inputs
    with torch.no_grad():
        return tensors(finalize(model)(*args, **kwargs))


def names_of_outputs(model: nn.Module, inputs: Arguments) -> list[str] | None:
    """The keys of a model that returns a dict."""
    args, kwargs = inputs
    with torch.no_grad():
        output = copy.deepcopy(model)(*args, **kwargs)
    return list(output) if isinstance(output, dict) else None


def difference(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Largest difference of outputs, over their largest value."""
    return max(
        float((a.double() - b.double()).abs().max() / a.double().abs().max().clamp(min=1e-12))
        for a, b in zip(expected, actual, strict=True)
        if a.numel()
    )


def agreement(expected: Sequence[Tensor], actual: Sequence[Tensor]) -> float:
    """Fraction of places where the largest of the last dimension is the same, in the first output."""
    a, b = expected[0], actual[0]
    return float((a.argmax(-1) == b.argmax(-1)).float().mean()) if a.ndim else float(a == b)


def median_seconds(run: Callable[[], Any], *, repeats: int = 20, warm_up: int = 3) -> float:
    """Median duration of a call, after a warm-up."""
    times = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times[warm_up:])


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
