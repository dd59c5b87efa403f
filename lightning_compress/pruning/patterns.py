"""Which weights go together."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor
from typing_extensions import override

from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.masks import keep_n_of_m
from lightning_compress.functional.select import keep_highest
from lightning_compress.targets import shorten


class Pattern:
    """The shape of the zeros."""

    def check_sparsity(self, sparsity: float) -> None:
        """Refuses a final sparsity the pattern cannot have, with a ``ValueError``."""


class WeightPattern(Pattern, ABC):
    """Zeros of each layer's weight by itself."""

    @abstractmethod
    def misfits(self, layers: Sequence[Layer]) -> str:
        """A sentence on the layers whose shape does not allow the pattern; empty if there are none."""

    @abstractmethod
    def choose(self, layers: Sequence[Layer], score: Callable[[Layer], Tensor], num_pruned: int) -> list[Tensor]:
        """Masks for layers that are ranked together.

        Args:
            layers: The layers.
            score: Gives each weight's score, of the shape of the layer's part on this rank; the lowest go.
            num_pruned: Number of weights to mask in all of them.

        Returns:
            Bool masks of the shapes of the scores, True where a weight stays.
        """

    def unit_size(self, layer: Layer) -> int:
        """Number of weights of the layer that go together."""
        return 1


class _Units(WeightPattern):
    """Patterns whose units of equal size are ranked against each other by their mean score."""

    def choose(self, layers: Sequence[Layer], score: Callable[[Layer], Tensor], num_pruned: int) -> list[Tensor]:
        kept = keep_highest(
            [partial(self._unit_scores, layer, score) for layer in layers],
            num_pruned=num_pruned,
            unit_sizes=[self.unit_size(layer) for layer in layers],
            group=layers[0].group,
        )
        return [self._spread(keep, layer) for keep, layer in zip(kept, layers, strict=True)]

    def _unit_scores(self, layer: Layer, score: Callable[[Layer], Tensor]) -> Tensor:
        return self._mean(score(layer), layer).flatten().contiguous()

    @abstractmethod
    def _mean(self, scores: Tensor, layer: Layer) -> Tensor:
        """The mean score of every unit, in the order of :meth:`_spread`."""

    @abstractmethod
    def _spread(self, keep: Tensor, layer: Layer) -> Tensor:
        """The weights' mask from the units'."""


@dataclass(frozen=True)
class Unstructured(_Units):
    """Any weight may go."""

    @override
    def misfits(self, layers: Sequence[Layer]) -> str:
        return ""

    def _mean(self, scores: Tensor, layer: Layer) -> Tensor:
        return scores

    def _spread(self, keep: Tensor, layer: Layer) -> Tensor:
        return keep.view(layer.weight.shape)


@dataclass(frozen=True)
class Block(_Units):
    """Blocks of the weight seen as a matrix of output channels by all the rest.

    Args:
        shape: Rows (output channels) and columns of a block.

    Raises:
        ValueError: If a side is below one.
    """

    shape: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"Block(shape={self.shape}) needs two sides of at least one, such as (4, 4).")

    @override
    def misfits(self, layers: Sequence[Layer]) -> str:
        rows, columns = self.shape
        names = [
            layer.name
            for layer in layers
            if len(layer.weight) % rows or math.prod(layer.shape[1:]) % columns or layer.shape[0] % rows
        ]
        return _advice(names, f"cannot be cut into blocks of {rows}x{columns}")

    @override
    def unit_size(self, layer: Layer) -> int:
        return math.prod(self.shape)

    def _mean(self, scores: Tensor, layer: Layer) -> Tensor:
        rows, columns = self.shape
        return scores.flatten(1).unflatten(1, (-1, columns)).unflatten(0, (-1, rows)).mean(dim=(1, 3))

    def _spread(self, keep: Tensor, layer: Layer) -> Tensor:
        weight, (rows, columns) = layer.weight, self.shape
        blocks = keep.view(len(weight) // rows, -1)
        return blocks.repeat_interleave(rows, 0).repeat_interleave(columns, 1).view(weight.shape)


@dataclass(frozen=True)
class Channels(Pattern):
    """Whole channels, from all layers that they couple, so that :func:`lightning_compress.shrink` can remove them.

    Where a channel goes, everything that makes it is zero: weights, biases, batch norms' scales and shifts, of all
    layers that add to one stream. Of grouped convolutions the same channel of every group goes, of attention whole
    heads, of the multi-layer perceptrons beside it hidden units. Layers are left whole whose channels cannot be removed
    without changing what the network computes otherwise, and such that make its output. What depends on what is found
    in runs of copies on the example inputs (DepGraph, Fang et al. 2023, arXiv:2301.12900).

    Args:
        round_to: Keep a multiple of so many channels in each layer, where it has that many; 8 suits most hardware.
        of: What the sparsity is a fraction of: the ``"channels"`` that can go, or the network's ``"parameters"``,
            ``"macs"`` (of convolutions and linear layers) or ``"latency"``, measured on the CPU on the example inputs,
            or else on two samples; as clocks go, such a run is not repeated exactly. Of channels that are ranked
            together, those go first whose score is low for the root of what they save.

    Raises:
        ValueError: If ``round_to`` is below one, or ``of`` something else.
    """

    round_to: int = 1
    of: Literal["channels", "parameters", "macs", "latency"] = "channels"

    def __post_init__(self) -> None:
        if self.round_to < 1:
            raise ValueError(f"Channels(round_to={self.round_to}) must be at least 1.")
        if self.of not in ("channels", "parameters", "macs", "latency"):
            raise ValueError(f"Channels(of={self.of!r}) must be 'channels', 'parameters', 'macs' or 'latency'.")


@dataclass(frozen=True)
class NM(WeightPattern):
    """At most ``n`` nonzero of every ``m`` consecutive weights along the input dimension; 2:4 is the case that matters.

    The sparsity of every layer is that of the pattern, ``1 - n / m``; on the way there whole steps of ``1 / m`` are
    taken. Mishra et al. 2021 (arXiv:2104.08378).

    Args:
        n: Weights kept of each group.
        m: Size of a group.

    Raises:
        ValueError: Unless ``0 < n < m``.
    """

    n: int
    m: int

    def __post_init__(self) -> None:
        if not 0 < self.n < self.m:
            raise ValueError(f"NM(n={self.n}, m={self.m}) needs 0 < n < m, such as NM(2, 4).")

    @override
    def check_sparsity(self, sparsity: float) -> None:
        if abs(sparsity - (1 - self.n / self.m)) > 1e-6:
            raise ValueError(
                f"Pruning(sparsity={sparsity}) cannot be had with NM({self.n}, {self.m}): "
                f"its sparsity is {1 - self.n / self.m:g}."
            )

    @override
    def misfits(self, layers: Sequence[Layer]) -> str:
        names = [
            layer.name
            for layer in layers
            if layer.shape[layer.input_dim] % self.m or (layer.group is not None and layer.input_dim == 0)
        ]
        return _advice(names, f"has an input dimension that is no multiple of {self.m}")

    @override
    def choose(self, layers: Sequence[Layer], score: Callable[[Layer], Tensor], num_pruned: int) -> list[Tensor]:
        sparsity = num_pruned / sum(layer.shape.numel() for layer in layers)
        kept = self.m - math.floor(sparsity * self.m + 1e-6)
        return [keep_n_of_m(score(layer), n=max(kept, self.n), m=self.m, dim=layer.input_dim) for layer in layers]


def _advice(names: list[str], what: str) -> str:
    globs = ", ".join(repr(name.rpartition(".")[0]) for name in names)
    return f"{shorten(names)} {what}; leave it out: Targets(exclude=({globs},))." if names else ""
