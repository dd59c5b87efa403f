"""Latency and multiply-accumulate counts of networks."""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.conv import _ConvNd
from torch.utils.flop_counter import FlopCounterMode

from lightning_compress.arguments import as_arguments
from lightning_compress.targets import requires_grad

Timer = Callable[[], float]
_Key = TypeVar("_Key")


def measure_latency(
    call: Callable[[], Any], *, repeats: int = 20, warm_up: int = 3, timer: Timer = time.perf_counter
) -> float:
    """Return the median duration of a call in seconds, on one thread.

    Args:
        call: Function without arguments.
        repeats: Number of timed calls.
        warm_up: Number of calls before the first timed one.
        timer: Clock in seconds.

    >>> clock = iter([0.0, 9.0, 10.0, 12.0, 20.0, 23.0, 30.0, 34.0])  # start and end of one warm-up and three calls
    >>> measure_latency(lambda: None, repeats=3, warm_up=1, timer=lambda: next(clock))
    3.0
    """
    return compare_latencies({"": call}, repeats=repeats, warm_up=warm_up, timer=timer)[""]


def latency_quartiles(call: Callable[[], Any], *, timer: Timer = time.perf_counter) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of the duration of a call in seconds, on one thread.

    >>> from itertools import count
    >>> clock = count()
    >>> latency_quartiles(lambda: None, timer=lambda: float(next(clock)))
    (1.0, 1.0, 1.0)
    """
    return quartiles(interleaved_durations({"": call}, timer=timer)[""])


def quartiles(durations: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile of durations.

    >>> quartiles([1.0, 2.0, 3.0, 4.0, 5.0])
    (2.0, 3.0, 4.0)
    """
    lower, median, upper = statistics.quantiles(durations, method="inclusive")
    return lower, median, upper


def compare_latencies(
    calls: Mapping[_Key, Callable[[], Any]], *, repeats: int = 20, warm_up: int = 3, timer: Timer = time.perf_counter
) -> dict[_Key, float]:
    """Return the median duration of each of several interleaved calls in seconds, on one thread.

    In every round each call runs once, in random order, so that other load on the machine affects all of them alike.

    Args:
        calls: Functions without arguments.
        repeats: Number of timed rounds.
        warm_up: Number of rounds before the first timed one.
        timer: Clock in seconds.
    """
    durations = interleaved_durations(calls, repeats=repeats, warm_up=warm_up, timer=timer)
    return {key: statistics.median(seconds) for key, seconds in durations.items()}


def interleaved_durations(
    calls: Mapping[_Key, Callable[[], Any]], *, repeats: int = 20, warm_up: int = 3, timer: Timer = time.perf_counter
) -> dict[_Key, list[float]]:
    """Return the durations of several interleaved calls in seconds, on one thread; arguments as above.

    >>> clock = iter([0.0, 2.0, 3.0, 4.0])
    >>> interleaved_durations({"a": lambda: None}, repeats=2, warm_up=0, timer=lambda: next(clock))
    {'a': [2.0, 1.0]}
    """
    order = random.Random(0)
    seconds: dict[_Key, list[float]] = {key: [] for key in calls}
    with one_thread():
        for _ in range(warm_up + repeats):
            for key in order.sample(list(calls), len(calls)):
                seconds[key].append(_duration(calls[key], timer))
    return {key: durations[warm_up:] for key, durations in seconds.items()}


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Run PyTorch's CPU operators on one thread within the context."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _duration(call: Callable[[], Any], timer: Timer) -> float:
    # CUDA kernels are asynchronous: neither earlier ones nor unfinished ones of this call may shift its end.
    _synchronize()
    begin = timer()
    call()
    _synchronize()
    return timer() - begin


def _synchronize() -> None:
    # is_initialized and not is_available, which would create a CUDA context in a process that uses the CPU alone.
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class MacCounts:
    """Multiply-accumulates of one forward pass.

    Attributes:
        weights: Multiply-accumulates of convolutions and matrix products with a parameter, by the parameter's name.
        activations: Multiply-accumulates of products of two activations, as in attention.
    """

    weights: dict[str, int]
    activations: int

    @property
    def total(self) -> int:
        """All multiply-accumulates."""
        return sum(self.weights.values()) + self.activations


def count_macs(model: nn.Module, example_inputs: Any) -> MacCounts:
    """Count the multiply-accumulates of convolutions and matrix products in one forward pass, attention included.

    Counts follow :class:`torch.utils.flop_counter.FlopCounterMode`; additions of biases, norms and activation
    functions are not counted. Tensors on the meta device need neither memory nor time.

    Args:
        model: The network, which is run once in its current mode.
        example_inputs: A tensor, a tuple, or a dict of keyword arguments.

    Returns:
        The counts; those of a shared weight are under the name that ``named_parameters`` lists.

    >>> count_macs(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()), torch.zeros(1, 3, 6, 6))
    MacCounts(weights={'0.weight': 3456}, activations=0)
    """
    args, kwargs = as_arguments(example_inputs)
    counter = _MacCounter(model)
    with (
        torch.no_grad(),
        requires_grad(model.parameters(), False),  # the counter follows arguments that want a gradient backwards, too
        torch.compiler.set_stance("force_eager"),
        _unfused_attention(),
        counter.watching(),
        counter,
    ):
        model(*args, **kwargs)
    return MacCounts({name: n for name, n in counter.macs.items() if name}, counter.macs[""])


class _MacCounter(FlopCounterMode):
    """Attributes the count of every operator to the parameter that it multiplies; to ``""`` without one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(display=False)
        self.macs = Counter[str]()
        self.flop_registry = {op: self._attributed(formula) for op, formula in self.flop_registry.items()}
        self._layers = [module for module in model.modules() if isinstance(module, (_ConvNd, nn.Linear))]
        self._running: list[nn.Module] = []
        self._names: dict[int, str] = {}
        for name, parameter in model.named_parameters():
            self._names.setdefault(_storage(parameter), name)

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Keep track of the layer that is running."""
        handles = [layer.register_forward_pre_hook(self._enter) for layer in self._layers]
        handles += [layer.register_forward_hook(self._leave) for layer in self._layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any) -> None:
        self._running.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()

    def _attributed(self, formula: Callable[..., int]) -> Callable[..., int]:
        def count(*args: Any, **kwargs: Any) -> int:
            flops = formula(*args, **kwargs)
            self.macs[self._weight(args)] += flops // 2
            return flops

        return count

    def _weight(self, operands: tuple[Any, ...]) -> str:
        # A bias has one dimension, and the weight follows the input: (input, weight, bias) of a convolution,
        # (bias, input, weight) of a matrix product.
        matrices = [operand for operand in reversed(operands) if isinstance(operand, Tensor) and operand.ndim > 1]
        if self._running and (weight := self._running[-1]._parameters.get("weight")) is not None:
            matrices.append(weight)  # a layer whose weight is computed from the parameter, as in weight standardization
        return next((name for matrix in matrices if (name := self._names.get(_storage(matrix)))), "")


def _storage(tensor: Tensor) -> int:
    # Linear layers multiply by a transposed view; on the meta device, views share the storage but have no address.
    return tensor.untyped_storage()._cdata


@contextlib.contextmanager
def _unfused_attention() -> Iterator[None]:
    """Run attention as separate matrix products: some fused kernels, such as those on the CPU, have no formula."""
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)
