"""Example inputs with a dynamic batch dimension."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only


def with_two_samples(example_inputs: Any) -> Any:
    """Return inputs of at least two samples, as ``torch.export`` specializes a dimension of size one to a constant."""
    return tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.ndim and len(t) == 1 else t, example_inputs)


def dynamic_batch_shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the ``dynamic_shapes`` of ``torch.export`` for inputs with the batch as their first dimension."""
    batch = torch.export.Dim("batch", min=1)

    def shape(value: Any) -> Any:
        # Flags and numbers among the inputs are constants of the file.
        return {0: batch} if isinstance(value, Tensor) and value.ndim else None

    shapes = tuple(tree_map(shape, list(args)))
    return (*shapes,) if not kwargs else {**dict(enumerate(shapes)), **tree_map(shape, kwargs)}
