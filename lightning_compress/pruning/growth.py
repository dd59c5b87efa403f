"""Dynamic sparse training: weights that are dropped and grown at constant sparsity."""

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
    """At each update the smallest weights are dropped and as many others begin at zero.

    Args:
        fraction: Part of the live weights num_dropped_and_grown at the first update; it falls to zero with a cosine.

    Raises:
        ValueError: If ``fraction`` is not in (0, 1).
    """

    fraction: float = 0.3

    needs_gradient = False

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise ValueError(f"{type(self).__name__}(fraction={self.fraction}) must lie between 0 and 1.")

    def num_dropped_and_grown(self, num_live: int, done: float) -> int:
        """Number of weights to drop_and_grow of ``num_live``, when the fraction ``done`` of the schedule has passed."""
        return round(num_live * self.fraction * (1 + math.cos(math.pi * min(done, 1.0))) / 2)

    @abstractmethod
    def priority(self, layer: Layer, gradient: Tensor | None, step: int) -> Tensor:
        """Which weights to grow first, highest first; float32, of the shape of the layer's part on this rank."""


@dataclass(frozen=True)
class RigL(Growth):
    """Grows where the dense gradient is largest. Evci et al. 2020 (arXiv:1911.11134)."""

    needs_gradient = True

    @override
    def priority(self, layer: Layer, gradient: Tensor | None, step: int) -> Tensor:
        assert gradient is not None, "dense gradients are read before every update"
        return gradient.abs().float()


@dataclass(frozen=True)
class SET(Growth):
    """Grows at random. Mocanu et al. 2018 (arXiv:1707.04780).

    Args:
        seed: Seed of the choice, which also depends on the step and the layer, and on nothing else.
    """

    seed: int = 0

    @override
    def priority(self, layer: Layer, gradient: Tensor | None, step: int) -> Tensor:
        return layer.local(uniform_noise(layer.shape, seed=(self.seed, step, layer.name)))
