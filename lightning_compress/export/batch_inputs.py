"""Example inputs with dynamic dimensions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_map_only


def with_two_samples(example_inputs: Any) -> Any:
    """Return inputs of at least two samples, as ``torch.export`` specializes a dimension of size one to a constant."""
    return tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.ndim and len(t) == 1 else t, example_inputs)


def dynamic_shapes(args: tuple[Any, ...], kwargs: dict[str, Any], *, batch: bool, size: bool) -> Any:
    """Return the ``dynamic_shapes`` of ``torch.export`` for inputs with the batch as their first dimension.

    Args:
        args: Positional inputs.
        kwargs: Inputs by keyword.
        batch: The first dimension may have any size.
        size: The others may have any size, as far as the model allows it.
    """
    first = torch.export.Dim("batch", min=1)

    def shape(value: Any) -> Any:
        # Flags and numbers among the inputs are constants of the file.
        if not isinstance(value, Tensor) or not value.ndim:
            return None
        dims: dict[int, Any] = {0: first} if batch else {}
        return dims | (dict.fromkeys(range(1, value.ndim), torch.export.Dim.AUTO) if size else {})

    shapes = tuple(tree_map(shape, list(args)))
    return (*shapes,) if not kwargs else {**dict(enumerate(shapes)), **tree_map(shape, kwargs)}
