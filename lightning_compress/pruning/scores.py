"""Importance scores of weights and channels; the lowest scores are pruned."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.layer_batches import stack, stack_weights
from lightning_compress.functional.importance import lamp_normalize, lamp_scores, uniform_noise
from lightning_compress.pruning.ranked_channel_group import RankedChannelGroup


class Score(ABC):
    """Base class of importance scores: weights with the highest scores are kept."""

    @abstractmethod
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        """Return the scores of a layer's weights.

        Args:
            layer: The layer.
            accumulated_scores: Scores of the layer that a gradient score accumulated or a probe score computed, of the
                shape of its local weight.
            step: Completed optimizer steps.

        Returns:
            float32 or float64 of the shape of the local weight, in memory of its own.
        """

    def batch_importance(self, layers: Sequence[Layer], accumulated_scores: Mapping[str, Tensor], step: int) -> Tensor:
        """Return the scores of the weights of layers of equal shape, a stack of (layers, ...).

        Args:
            layers: The layers.
            accumulated_scores: Scores that a gradient score accumulated or a probe score computed, by parameter name.
            step: Completed optimizer steps.
        """
        return stack([self.importance(layer, accumulated_scores.get(layer.name), step) for layer in layers])

    def channel_importance(
        self, ranked: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int
    ) -> Tensor:
        """Return the scores of a group's channels, by default the sum over the weights that produce them.

        Args:
            ranked: The channel group.
            accumulated_scores: Scores that a gradient score accumulated or a probe score computed, by parameter name.
            step: Completed optimizer steps.

        Returns:
            float64 of shape ``(num_channels,)`` on the CPU, comparable between groups.
        """
        return ranked.sum_per_channel(
            ranked.output_slices, lambda layer: self.importance(layer, accumulated_scores.get(layer.name), step)
        )


@dataclass(frozen=True)
class Magnitude(Score):
    """Absolute weight to the power of ``p``; units of several weights score by the mean. Han et al. 2015.

    Channels score by all weights that produce or consume them, normalized within their group as in DepGraph (Fang et
    al. 2023, arXiv:2301.12900).

    Args:
        p: 1 for the L1 norm, 2 for the L2 norm.

    Raises:
        ValueError: If ``p`` is not 1 or 2.

    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.tensor([[0.5, -2.0, 0.0]])))
    >>> Magnitude(p=2).importance(layer, None, step=0)
    tensor([[0.2500, 4.0000, 0.0000]])
    """

    p: int = 1

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise ValueError(f"Magnitude(p={self.p}) must be 1 (L1) or 2 (L2).")

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        return self._powers(layer.weight)

    @override
    def batch_importance(self, layers: Sequence[Layer], accumulated_scores: Mapping[str, Tensor], step: int) -> Tensor:
        return self._powers(stack_weights(layers))

    def _powers(self, weight: Tensor) -> Tensor:
        # float32 before the square, which underflows in float16.
        magnitude = weight.abs().float()
        return magnitude if self.p == 1 else magnitude.square_()

    @override
    def channel_importance(
        self, ranked: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int
    ) -> Tensor:
        weights = (*ranked.output_slices, *ranked.input_slices)
        return ranked.normalize(ranked.sum_per_channel(weights, lambda layer: self.importance(layer, None, step)))


@dataclass(frozen=True)
class LAMP(Score):
    """Layer-adaptive magnitude: ``w^2`` over the sum of all squares in the layer that are no smaller.

    Scores can be compared between layers, so that a global ranking also sets the sparsity of each layer. Lee et al.
    2021 (arXiv:2010.07611).

    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.tensor([[2.0, -3.0, 1.0]])))
    >>> LAMP().importance(layer, None, step=0)
    tensor([[0.3077, 1.0000, 0.0714]])
    """

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        return layer.local(lamp_scores(layer.full(layer.weight)))

    @override
    def channel_importance(
        self, ranked: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int
    ) -> Tensor:
        weights = (*ranked.output_slices, *ranked.input_slices)
        return lamp_normalize(ranked.sum_per_channel(weights, lambda layer: layer.weight.double().square()))


@dataclass(frozen=True)
class FPGM(Score):
    """Filter pruning via geometric median: mean distance of an output channel from all output channels of the layer.

    A channel near the others is redundant. All weights of a channel have the same score. He et al. 2019
    (arXiv:1811.00250).

    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.tensor([[0.0], [1.0], [5.0]])))
    >>> FPGM().importance(layer, None, step=0).flatten()
    tensor([2.0000, 1.6667, 3.0000])
    """

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        full = layer.full(layer.weight)
        output_dim = 1 - layer.input_dim
        filters = full.movedim(output_dim, 0).flatten(1).float()
        shape = [-1 if dim == output_dim else 1 for dim in range(full.ndim)]
        return layer.local(torch.cdist(filters, filters).mean(dim=1).view(shape).expand_as(full).contiguous())

    @override
    def channel_importance(
        self, ranked: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int
    ) -> Tensor:
        distances = ranked.sum_per_channel(ranked.layer_weights, lambda layer: self.importance(layer, None, step))
        return ranked.normalize(distances)


@dataclass(frozen=True)
class Random(Score):
    """Uniform noise, the baseline for other scores.

    Args:
        seed: Seed of the noise, which otherwise depends only on the step and the layer.

    >>> layer = Layer("fc.weight", torch.nn.Parameter(torch.ones(2, 3)))
    >>> noise = Random(seed=1).importance(layer, None, step=0)
    >>> torch.equal(noise, Random(seed=1).importance(layer, None, step=0))
    True
    """

    seed: int = 0

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        return layer.local(uniform_noise(layer.shape, seed=(self.seed, step, layer.name)))

    @override
    def channel_importance(
        self, ranked: RankedChannelGroup, accumulated_scores: Mapping[str, Tensor], step: int
    ) -> Tensor:
        shape = torch.Size([ranked.group.num_channels])
        return uniform_noise(shape, seed=(self.seed, step, ranked.name)).double()


class GradientScore(Score):
    """Score accumulated over completed training steps, from gradients that are reduced over ranks."""

    restarts: ClassVar[bool]
    """True if the sum is reset after each update of the masks."""

    @abstractmethod
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        """Return the contribution of one step.

        Args:
            weight: float32.
            gradient: Dense gradient without loss scale and before clipping, float32 of the same shape.
        """

    @override
    def importance(self, layer: Layer, accumulated_scores: Tensor | None, step: int) -> Tensor:
        assert accumulated_scores is not None, "a gradient score needs at least one completed step"
        return accumulated_scores.clone()


@dataclass(frozen=True)
class Taylor(GradientScore):
    """Squared first-order change of the loss, ``(w g)^2``, over the steps since the last update of the masks.

    Molchanov et al. 2019 (arXiv:1906.10771).

    >>> Taylor().contribution(torch.tensor([2.0, -3.0]), torch.tensor([0.5, 1.0]))
    tensor([1., 9.])
    """

    restarts: ClassVar[bool] = True

    @override
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).square_()


@dataclass(frozen=True)
class Movement(GradientScore):
    """Movement away from zero, ``-w g``, over the whole run. Sanh et al. 2020 (arXiv:2005.07683).

    >>> Movement().contribution(torch.tensor([2.0, -3.0]), torch.tensor([0.5, 1.0]))
    tensor([-1.,  3.])
    """

    restarts: ClassVar[bool] = False

    @override
    def contribution(self, weight: Tensor, gradient: Tensor) -> Tensor:
        return (weight * gradient).neg_()
