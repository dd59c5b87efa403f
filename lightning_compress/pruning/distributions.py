"""How a sparsity is spread over layers that are each ranked by themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from typing_extensions import override

from lightning_compress.functional.allocation import apportion, erdos_renyi_kernel


class Distribution(ABC):
    """Shares of a sparsity for layers."""

    @abstractmethod
    def densities(self, shapes: Sequence[torch.Size], density: float) -> list[float]:
        """The part of each layer's weights that stays, for a ``density`` of all of them."""

    def num_pruned(self, shapes: Sequence[torch.Size], sparsity: float) -> list[int]:
        """Number of weights to prune in each layer; they sum to the ``sparsity`` of all, to one weight."""
        densities = self.densities(shapes, 1 - sparsity)
        pruned = [shape.numel() * (1 - density) for shape, density in zip(shapes, densities, strict=True)]
        return apportion(pruned, round(sum(shape.numel() for shape in shapes) * sparsity))


@dataclass(frozen=True)
class Uniform(Distribution):
    """The same sparsity in every layer."""

    @override
    def densities(self, shapes: Sequence[torch.Size], density: float) -> list[float]:
        return [density] * len(shapes)


@dataclass(frozen=True)
class ERK(Distribution):
    """Erdos-Renyi-Kernel: larger layers sparser. Evci et al. 2020 (arXiv:1911.11134)."""

    @override
    def densities(self, shapes: Sequence[torch.Size], density: float) -> list[float]:
        return erdos_renyi_kernel(shapes, density)
