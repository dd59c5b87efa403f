"""Dynamic sparse training: rules that drop and grow weights at constant sparsity."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lightning_compress.constraints.layer import Layer
from lightning_compress.functional.importance import uniform_noise


@dataclass(frozen=True)
class Growth(ABC):
    """Base class of drop-and-grow rules: each update drops the smallest weights and grows as many others from zero.

    Args:
        fraction: Fraction of the active weights that are dropped at the first update, in (0, 1); it decays to zero
            along a cosine.

    Raises:
        ValueError: If ``fraction`` is not in (0, 1).
    """

    fraction: float = 0.3

    needs_gradient = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"{type(self).__name__}(fraction={self.fraction}) must lie between 0 and 1.")

    def num_dropped_and_grown(self, num_active: int, progress: float) -> int:
        """Return the number of weights to drop, and to grow.

        Args:
            num_active: Number of weights that are not masked.
            progress: Completed fraction of the schedule.
        """
        return round(num_active * self.fraction * (1 + math.cos(math.pi * min(progress, 1.0))) / 2)

    @abstractmethod
    def priority(self, layer: Layer, gradient: Tensor | None, step: int) -> Tensor:
        """Return the priority with which masked weights grow, highest first.

        Args:
            layer: The layer.
            gradient: Dense gradient of the local weight, if :attr:`needs_gradient`.
            step: Completed optimizer steps.

        Returns:
            float32 of the shape of the local weight.
        """


@dataclass(frozen=True)
class RigL(Growth):
    """Grow weights with the largest dense gradients. Evci et al. 2020 (arXiv:1911.11134).

    Args:
        fraction: Fraction of the active weights that are dropped at the first update, in (0, 1); it decays to zero
            along a cosine.

    Raises:
        ValueError: If ``fraction`` is not in (0, 1).

    >>> [RigL(fraction=0.3).num_dropped_and_grown(1000, progress) for progress in (0.0, 0.5, 1.0)]
    [300, 150, 0]
    """

    needs_gradient = True

    @override
    def priority(self, layer: Layer, gradient: Tensor | None, step: int) -> Tensor:
        assert gradient is not None, "layers without a gradient are left out"
        return gradient.abs().float()


@dataclass(frozen=True)
class SET(Growth):
    """Grow random weights: sparse evolutionary training. Mocanu et al. 2018 (arXiv:1707.04780).

    Args:
        fraction: Fraction of the active weights that are dropped at the first update, in (0, 1); it decays to zero
            along a cosine.
        seed: Seed of the choice, which otherwise depends only on the step and the layer.

    Raises:
        ValueError: If ``fraction`` is not in (0, 1).

    >>> SET(fraction=0.5).num_dropped_and_grown(1000, 0.0)
    500
    """

    seed: int = 0

    @override
    def priority(self, layer: Layer, gradient: Tensor | None, step: int) -> Tensor:
        return layer.local(uniform_noise(layer.shape, seed=(self.seed, step, layer.name)))
