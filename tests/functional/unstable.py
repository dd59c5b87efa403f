"""Tensors that are sorted as on a GPU."""

from __future__ import annotations

from torch import Tensor


class Unstable(Tensor):
    """A sort that need not be stable reverses the order of equal values."""

    def argsort(self, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
        plain = self.as_subclass(Tensor)
        if stable:
            return plain.argsort(dim=dim, descending=descending, stable=True)
        return plain.shape[dim] - 1 - plain.flip(dim).argsort(dim=dim, descending=descending, stable=True)
