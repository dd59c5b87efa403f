"""What a network costs, and what is left of it without some of its channels."""

from __future__ import annotations

import copy
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from typing_extensions import override

from lightning_compress.channels.groups import ChannelGroup, first_names, named_tensors
from lightning_compress.channels.remove import remove_


class Cost(ABC):
    """A quantity that a network needs less of with every channel that goes."""

    @abstractmethod
    def left(self, gone: Mapping[ChannelGroup, Tensor]) -> float:
        """What is needed without some channels.

        Args:
            gone: Which channels of each group go, one bool each on the CPU.
        """


class NumChannels(Cost):
    """The number of channels of some groups.

    Args:
        groups: The groups.
    """

    def __init__(self, groups: Sequence[ChannelGroup]) -> None:
        self._groups = list(groups)

    @override
    def left(self, gone: Mapping[ChannelGroup, Tensor]) -> float:
        return sum(int((~gone[group]).sum()) for group in self._groups)


class TensorSizes(Cost):
    """A sum over tensors of their number of elements, each tensor with a factor of its own.

    Args:
        model: The network.
        groups: The groups that may lose channels.
        factors: The factor of each tensor that counts, by name.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], factors: Mapping[str, float]) -> None:
        tensors = named_tensors(model)
        self._factors = factors
        self._shapes = {name: tuple(tensors[name].shape) for name in factors}
        self._sides: dict[tuple[str, int], list[tuple[ChannelGroup, Tensor]]] = {}
        for group in groups:
            for part in group.slices:
                if part.tensor in factors:
                    counts = part.channels.bincount(minlength=group.num_channels)
                    self._sides.setdefault((part.tensor, part.dim), []).append((group, counts))

    @override
    def left(self, gone: Mapping[ChannelGroup, Tensor]) -> float:
        shapes = {name: list(shape) for name, shape in self._shapes.items()}
        for (name, dim), parts in self._sides.items():
            shapes[name][dim] -= sum(int(counts[gone[group]].sum()) for group, counts in parts)
        return sum(factor * torch.Size(shapes[name]).numel() for name, factor in self._factors.items())


class Latency(Cost):
    """Seconds of a forward pass in eval mode, the median of a few, measured where the network is and as it is.

    Args:
        model: The network; only copies are run.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments.
        runs: Number of passes, after one that does not count.
    """

    def __init__(self, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, runs: int = 5) -> None:
        self._model = copy.deepcopy(model).eval()
        self._args, self._kwargs, self._runs = args, kwargs, runs

    @override
    def left(self, gone: Mapping[ChannelGroup, Tensor]) -> float:
        small = copy.deepcopy(self._model)
        remove_(small, gone)
        seconds = [self._seconds(small) for _ in range(self._runs + 1)]
        measured = [statistics.median(seconds[1:])]
        if dist.is_available() and dist.is_initialized():
            dist.broadcast_object_list(measured)  # ranks must agree, and clocks do not
        return measured[0]

    def _seconds(self, model: nn.Module) -> float:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            begin = time.perf_counter()
            model(*self._args, **self._kwargs)
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            return time.perf_counter() - begin


def parameters(model: nn.Module) -> dict[str, float]:
    """Factors with which :class:`TensorSizes` counts parameters."""
    return dict.fromkeys((name for name, _ in model.named_parameters()), 1.0)


def macs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, float]:
    """Factors with which :class:`TensorSizes` counts multiply-accumulates of convolutions and linear layers.

    Args:
        model: The network; only a copy is run.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments.

    Returns:
        How often each weight of the layers is multiplied, by the weights' names.
    """
    twin = copy.deepcopy(model).eval()
    names, factors = first_names(twin), dict[str, float]()

    def count(name: str) -> Callable[..., None]:
        def hook(module: _ConvNd | nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            # Every output position multiplies each weight once; of a transposed convolution every input position.
            seen = inputs[0] if isinstance(module, _ConvTransposeNd) else output
            factors[names[name]] = factors.get(names[name], 0.0) + seen.numel() / len(module.weight)

        return hook

    for name, module in twin.named_modules():
        if isinstance(module, (_ConvNd, nn.Linear)):
            module.register_forward_hook(count(f"{name}.weight".lstrip(".")))
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        twin(*args, **kwargs)
    return factors
