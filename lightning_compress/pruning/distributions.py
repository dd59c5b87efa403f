"""Distributions of a sparsity over layers that are ranked one by one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from lightning_compress.functional.allocation import apportion, erdos_renyi_kernel


class Distribution(ABC):
    """Base class of distributions of a sparsity over layers."""

    @abstractmethod
    def densities(self, shapes: Sequence[torch.Size], density: float) -> list[float]:
        """Return the fraction of weights to keep in each layer.

        Args:
            shapes: Shape of each layer's weight.
            density: Fraction of weights to keep in all layers together, in (0, 1].
        """

    def num_pruned(self, shapes: Sequence[torch.Size], sparsity: float) -> list[int]:
        """Return the number of weights to prune in each layer.

        Args:
            shapes: Shape of each layer's weight.
            sparsity: Fraction of weights to prune in all layers together, in [0, 1).

        Returns:
            Numbers that sum to the sparsity of all weights, rounded to a whole weight.
        """
        densities = self.densities(shapes, 1 - sparsity)
        pruned = [shape.numel() * (1 - density) for shape, density in zip(shapes, densities, strict=True)]
        return apportion(pruned, round(sum(shape.numel() for shape in shapes) * sparsity))


@dataclass(frozen=True)
class Uniform(Distribution):
    """The same sparsity in every layer.

    >>> Uniform().num_pruned([torch.Size([10, 10]), torch.Size([4, 5])], sparsity=0.9)
    [90, 18]
    """

    @override
    def densities(self, shapes: Sequence[torch.Size], density: float) -> list[float]:
        return [density] * len(shapes)


@dataclass(frozen=True)
class ERK(Distribution):
    """Erdos-Renyi-Kernel: higher sparsity in larger layers. Evci et al. 2020 (arXiv:1911.11134).

    >>> ERK().num_pruned([torch.Size([10, 10]), torch.Size([100, 100])], sparsity=0.9)
    [8, 9082]
    """

    @override
    def densities(self, shapes: Sequence[torch.Size], density: float) -> list[float]:
        return erdos_renyi_kernel(shapes, density)
