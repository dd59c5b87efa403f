"""Costs of a model after the removal of some of its channels."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from lightning_compress.channels.groups import ChannelGroup, named_tensors
from lightning_compress.channels.remove import remove_
from lightning_compress.module_copies import copy_module
from lightning_compress.profiling import Timer, count_macs, measure_latency


class Cost(ABC):
    """A cost of a model that does not increase with the removal of channels."""

    @abstractmethod
    def remaining(self, removed: Mapping[ChannelGroup, Tensor]) -> float:
        """Return the cost that remains after the removal of channels.

        Args:
            removed: Channels to remove from each group, bool of shape ``(num_channels,)`` on the CPU.
        """


class NumChannels(Cost):
    """Number of channels.

    Args:
        groups: Groups that are counted.
    """

    def __init__(self, groups: Sequence[ChannelGroup]) -> None:
        self._groups = list(groups)

    @override
    def remaining(self, removed: Mapping[ChannelGroup, Tensor]) -> float:
        return sum(int((~removed[group]).sum()) for group in self._groups)


class TensorSizes(Cost):
    """Weighted sum of the number of elements of tensors.

    Args:
        model: The model.
        groups: Groups that may lose channels.
        factors: Factor of each tensor by its name; tensors without a factor are not counted.
    """

    def __init__(self, model: nn.Module, groups: Sequence[ChannelGroup], factors: Mapping[str, float]) -> None:
        tensors = named_tensors(model)
        self._factors = factors
        self._shapes = {name: tuple(tensors[name].shape) for name in factors}
        # Number of indices that each channel occupies, by tensor and dimension.
        self._counts: dict[tuple[str, int], list[tuple[ChannelGroup, Tensor]]] = {}
        for group in groups:
            for channel_slice in group.slices:
                if channel_slice.tensor in factors:
                    counts = channel_slice.channels.bincount(minlength=group.num_channels)
                    self._counts.setdefault((channel_slice.tensor, channel_slice.dim), []).append((group, counts))

    @override
    def remaining(self, removed: Mapping[ChannelGroup, Tensor]) -> float:
        shapes = {name: list(shape) for name, shape in self._shapes.items()}
        for (name, dim), counts_by_group in self._counts.items():
            shapes[name][dim] -= sum(int(counts[removed[group]].sum()) for group, counts in counts_by_group)
        return sum(factor * torch.Size(shapes[name]).numel() for name, factor in self._factors.items())


class Latency(Cost):
    """Median seconds of a forward pass in eval mode, on the model's device and one CPU thread.

    Args:
        model: The model; only copies are run.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.
        runs: Number of timed passes, after a warm-up pass.
        timer: Clock in seconds.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        runs: int = 5,
        timer: Timer = time.perf_counter,
    ) -> None:
        self._model = copy_module(model).eval()
        self._args, self._kwargs, self._runs, self._timer = args, kwargs, runs, timer

    @override
    def remaining(self, removed: Mapping[ChannelGroup, Tensor]) -> float:
        small = copy_module(self._model)
        remove_(small, removed)
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            seconds = measure_latency(
                lambda: small(*self._args, **self._kwargs), repeats=self._runs, warm_up=1, timer=self._timer
            )
        measured = [seconds]
        # All ranks must choose the same channels, and each measures a different latency.
        if dist.is_available() and dist.is_initialized():
            dist.broadcast_object_list(measured)
        return measured[0]


def parameter_factors(model: nn.Module) -> dict[str, float]:
    """Return the factors with which :class:`TensorSizes` counts parameters."""
    return dict.fromkeys((name for name, _ in model.named_parameters()), 1.0)


def mac_factors(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, float]:
    """Return the factors with which :class:`TensorSizes` counts the multiply-accumulates of weights.

    Args:
        model: The model; only a copy is run.
        args: Positional arguments of its forward.
        kwargs: Keyword arguments of its forward.

    Returns:
        Multiply-accumulates per element of each weight, by the weight's name. Their sum over the elements is
        :attr:`MacCounts.total` without the products of two activations.
    """
    tensors = named_tensors(model)
    counts = count_macs(copy_module(model).eval(), (args, dict(kwargs))).weights
    return {name: number / tensors[name].numel() for name, number in counts.items()}
