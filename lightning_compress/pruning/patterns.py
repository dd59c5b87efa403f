"""Sparsity patterns: units of weights that are pruned together."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from typing_extensions import override

from lightning_compress.constraints.layer import Layer, group_of
from lightning_compress.constraints.layer_batches import make_batches
from lightning_compress.functional.masks import keep_n_of_m
from lightning_compress.functional.select import keep_highest
from lightning_compress.targets import shorten

BatchScore = Callable[[Sequence[Layer]], Tensor]
"""Maps layers of equal shape to the scores of their weights, a stack of (layers, ...)."""


class Pattern:
    """Base class of sparsity patterns."""

    def check_sparsity(self, sparsity: float) -> None:
        """Check a final sparsity.

        Raises:
            ValueError: If it is not possible with the pattern.
        """


class WeightPattern(Pattern, ABC):
    """Base class of patterns within the weight of each layer."""

    @abstractmethod
    def misfits(self, layers: Sequence[Layer]) -> str:
        """Return an error message for layers with shapes that do not fit the pattern; empty if there are none."""

    def choose(self, layers: Sequence[Layer], score: BatchScore, num_pruned: int) -> list[Tensor]:
        """Choose the masks of layers that are ranked together.

        Args:
            layers: The layers.
            score: Maps layers of equal shape to the scores of their weights, a stack of the local shards' shape; the
                lowest are pruned.
            num_pruned: Number of weights to prune in all layers together.

        Returns:
            Bool masks of the shapes of the local weights, True where a weight is kept.
        """
        batches = make_batches(layers)
        masks: dict[int, Tensor] = {}
        for batch, chosen in zip(batches, self._choose(layers, batches, score, num_pruned), strict=True):
            masks.update(zip(batch, chosen.unbind(), strict=True))
        return [masks[i] for i in range(len(layers))]

    @abstractmethod
    def _choose(
        self, layers: Sequence[Layer], batches: list[list[int]], score: BatchScore, num_pruned: int
    ) -> list[Tensor]:
        """Return a stack of masks for each batch."""

    def unit_size(self, layer: Layer) -> int:
        """Return the number of weights of the layer that are pruned together."""
        return 1


class _UnitPattern(WeightPattern):
    """Base class of patterns with units of equal size, ranked by their mean score."""

    @override
    def _choose(
        self, layers: Sequence[Layer], batches: list[list[int]], score: BatchScore, num_pruned: int
    ) -> list[Tensor]:
        members = [[layers[i] for i in batch] for batch in batches]
        kept = keep_highest(
            [partial(self._unit_scores, batch, score) for batch in members],
            num_pruned=num_pruned,
            unit_sizes=[self.unit_size(batch[0]) for batch in members],
            positions=batches,
            group=group_of(layers),
            whole=[batch[0].group is None for batch in members],
        )
        return [self._expand(keep, batch[0]) for keep, batch in zip(kept, members, strict=True)]

    def _unit_scores(self, batch: Sequence[Layer], score: BatchScore) -> Tensor:
        return self._unit_means(score(batch), batch[0]).flatten(1).contiguous()

    @abstractmethod
    def _unit_means(self, scores: Tensor, layer: Layer) -> Tensor:
        """Return the mean score of every unit of layers like this one, of shape (layers, ...)."""

    @abstractmethod
    def _expand(self, keep: Tensor, layer: Layer) -> Tensor:
        """Expand masks of units (layers, units), in the order of :meth:`_unit_means`, to masks of weights."""


@dataclass(frozen=True)
class Unstructured(_UnitPattern):
    """Single weights, anywhere in a layer.

    >>> import torch
    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.tensor([[0.1, 0.9, -0.2, 0.5]])))
    >>> Unstructured().choose([layer], lambda layers: layers[0].weight.abs()[None], num_pruned=2)
    [tensor([[False,  True, False,  True]])]
    """

    @override
    def misfits(self, layers: Sequence[Layer]) -> str:
        return ""

    def _unit_means(self, scores: Tensor, layer: Layer) -> Tensor:
        return scores

    def _expand(self, keep: Tensor, layer: Layer) -> Tensor:
        return keep.view(-1, *layer.weight.shape)


@dataclass(frozen=True)
class Block(_UnitPattern):
    """Blocks of a weight that is viewed as a matrix of output channels by all other dimensions.

    Blocks are ranked by the mean score of their weights.

    Args:
        shape: Number of rows (output channels) and columns of a block.

    Raises:
        ValueError: If a side is below one.

    >>> import torch
    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.tensor([[1.0, 1.0, 0.0, 2.0], [1.0, 1.0, 0.0, 0.0]])))
    >>> Block((2, 2)).choose([layer], lambda layers: layers[0].weight.abs()[None], num_pruned=4)[0].int()
    tensor([[1, 1, 0, 0],
            [1, 1, 0, 0]], dtype=torch.int32)
    """

    shape: tuple[int, int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))  # YAML gives a list
        if len(self.shape) != 2 or min(self.shape) < 1:
            raise ValueError(f"Block(shape={self.shape}) needs two sides of at least one, such as (4, 4).")

    @override
    def misfits(self, layers: Sequence[Layer]) -> str:
        rows, columns = self.shape
        names = [
            layer.name
            for layer in layers
            if any(shape[0] % rows or math.prod(shape[1:]) % columns for shape in (layer.shape, layer.shard_shape))
        ]
        return _advice(names, f"cannot be cut into blocks of {rows}x{columns}")

    @override
    def unit_size(self, layer: Layer) -> int:
        return math.prod(self.shape)

    def _unit_means(self, scores: Tensor, layer: Layer) -> Tensor:
        (rows, columns), (num_rows, num_columns) = self.shape, self._num_blocks(layer)
        return scores.view(len(scores), num_rows, rows, num_columns, columns).mean(dim=(2, 4))

    def _expand(self, keep: Tensor, layer: Layer) -> Tensor:
        rows, columns = self.shape
        blocks = keep.view(len(keep), *self._num_blocks(layer))  # one entry per block
        return blocks.repeat_interleave(rows, 1).repeat_interleave(columns, 2).view(-1, *layer.weight.shape)

    def _num_blocks(self, layer: Layer) -> tuple[int, int]:
        rows, columns = self.shape
        return len(layer.weight) // rows, math.prod(layer.weight.shape[1:]) // columns


@dataclass(frozen=True)
class NM(WeightPattern):
    """At most ``n`` nonzero weights in each group of ``m`` along the input dimension, such as 2:4.

    Every layer has a final sparsity of ``1 - n / m``, reached in steps of ``1 / m``. Mishra et al. 2021
    (arXiv:2104.08378).

    Args:
        n: Number of weights kept in each group.
        m: Number of consecutive weights in a group.

    Raises:
        ValueError: Unless ``0 < n < m``.

    >>> import torch
    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.tensor([[4.0, -1.0, 3.0, 2.0]])))
    >>> NM(2, 4).choose([layer], lambda layers: layers[0].weight.abs()[None], num_pruned=2)
    [tensor([[ True, False,  True, False]])]
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
                f"Pruning(sparsity={sparsity}) is not possible with NM({self.n}, {self.m}): "
                f"its sparsity must be {1 - self.n / self.m:g}."
            )

    @override
    def misfits(self, layers: Sequence[Layer]) -> str:
        unknown = [layer.name for layer in layers if not layer.knows_input_dim]
        if unknown:
            return _advice(unknown, "is of a kind of layer whose input dimension cannot be determined")
        names = [
            layer.name
            for layer in layers
            if layer.shape[layer.input_dim] % self.m or layer.shard_shape[layer.input_dim] % self.m
        ]
        return _advice(names, f"has an input dimension that is not a multiple of {self.m}")

    @override
    def _choose(
        self, layers: Sequence[Layer], batches: list[list[int]], score: BatchScore, num_pruned: int
    ) -> list[Tensor]:
        sparsity = num_pruned / sum(layer.shape.numel() for layer in layers)
        # The tolerance is for sparsities that are a multiple of 1 / m up to floating point.
        kept = self.m - math.floor(sparsity * self.m + 1e-6)
        kept = max(kept, self.n)
        members = ([layers[i] for i in batch] for batch in batches)
        return [keep_n_of_m(score(batch), n=kept, m=self.m, dim=1 + batch[0].input_dim) for batch in members]


def _advice(names: list[str], problem: str) -> str:
    globs = ", ".join(repr(name.rpartition(".")[0]) for name in names)
    return f"{shorten(names)} {problem}; leave it out: Targets(exclude=({globs},))." if names else ""
