"""How much each weight matters; the lowest scores are pruned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.importance import layer_adaptive, part_of_the_rest, uniform_noise
from lightning_compress.pruning.ranked_channel_group import RankedChannelGroup


class Score(ABC):
    """Importance of weights, higher stays."""

    @abstractmethod
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        """Scores of the shape of the layer's part on this rank, float32 or float64, in memory of their own.

        Args:
            layer: The layer.
            accumulated_scores: What a gradient or probe score has gathered for the layer.
            step: Completed optimizer steps.
        """

    def of_channels(self, coupled: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int) -> Tensor:
        """Scores of the channels of a group: the sums over the weights that make them.

        Args:
            coupled: The group.
            accumulated_scores: What a gradient or probe score has gathered, by the names of the weights.
            step: Completed optimizer steps.

        Returns:
            One float64 for each channel, on the CPU; comparable between groups.
        """
        return coupled.sums(
            coupled.output_slices, lambda layer: self.importance(layer, accumulated_scores.get(layer.name), step)
        )


@dataclass(frozen=True)
class Magnitude(Score):
    """The absolute weight; units of several weights count by the mean of its ``p``-th power. Han et al. 2015.

    Args:
        p: 1 for L1, 2 for L2.

    Raises:
        ValueError: If ``p`` is not 1 or 2.
    """

    p: int = 1

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"Magnitude(p={self.p}) must be 1 (L1) or 2 (L2).")

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        magnitude = layer.weight.abs().float()
        return magnitude if self.p == 1 else magnitude.square_()

    @override
    def of_channels(self, coupled: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int) -> Tensor:
        """Also over the weights that read them, as in DepGraph, relative to what remains of the group."""
        both = (*coupled.output_slices, *coupled.input_slices)
        return coupled.relative(coupled.sums(both, lambda layer: self.importance(layer, None, step)))


@dataclass(frozen=True)
class LAMP(Score):
    """Magnitudes that can be compared between layers: ``w^2`` over the sum of the layer's no smaller squares.

    Ranked over all layers it finds each layer's sparsity by itself. Lee et al. 2021 (arXiv:2010.07611).
    """

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        return layer.local(layer_adaptive(layer.full(layer.weight)))

    @override
    def of_channels(self, coupled: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int) -> Tensor:
        """Of the channels' L2 norms over all tensors of the group."""
        squares = coupled.sums(
            (*coupled.output_slices, *coupled.input_slices), lambda layer: layer.weight.double().square()
        )
        return part_of_the_rest(squares)


@dataclass(frozen=True)
class FPGM(Score):
    """Distance from the layer's other output channels, which could take over: the same for all weights of a channel.

    He et al. 2019 (arXiv:1811.00250).
    """

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        whole = layer.full(layer.weight)
        made = 1 - layer.input_dim
        rows = whole.movedim(made, 0).flatten(1).float()
        sides = [-1 if dim == made else 1 for dim in range(whole.ndim)]
        return layer.local(torch.cdist(rows, rows).mean(dim=1).view(sides).expand_as(whole).contiguous())

    @override
    def of_channels(self, coupled: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int) -> Tensor:
        return coupled.relative(coupled.sums(coupled.matrices, lambda layer: self.importance(layer, None, step)))


@dataclass(frozen=True)
class Random(Score):
    """Noise: the control that every other score has to beat.

    Args:
        seed: Seed of the noise, which also depends on the step and the layer, and on nothing else.
    """

    seed: int = 0

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        return layer.local(uniform_noise(layer.shape, seed=(self.seed, step, layer.name)))

    @override
    def of_channels(self, coupled: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int) -> Tensor:
        shape = torch.Size([coupled.group.num_channels])
        return uniform_noise(shape, seed=(self.seed, step, coupled.name)).double()


class GradientScore(Score):
    """Scores summed up over the gradients of completed training steps, as they are after reduction over ranks."""

    restarts: ClassVar[bool]
    """Whether the sum starts anew after each update of the masks."""

    @abstractmethod
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """What one step adds; dense gradient, unscaled and before clipping, both float32."""

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        assert accumulated_scores is not None, "a gradient score is asked after at least one step"
        return accumulated_scores.clone()


@dataclass(frozen=True)
class Taylor(GradientScore):
    """First-order change of the loss, ``(w g)^2``, over the steps since the last update. Molchanov et al. 2019."""

    restarts: ClassVar[bool] = True

    @override
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).square_()


@dataclass(frozen=True)
class Movement(GradientScore):
    """Weights that move away from zero stay: ``-w g`` over the whole run. Sanh et al. 2020 (arXiv:2005.07683)."""

    restarts: ClassVar[bool] = False

    @override
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).neg_()
