"""What exporters want to know of example inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only


def batched(example_inputs: Any) -> Any:
    """Inputs with at least two samples: of one, an exporter takes the batch size for a constant."""
    return tree_map_only(Tensor, lambda t: torch.cat([t, t]) if t.ndim and len(t) == 1 else t, example_inputs)


def dynamic_batch_shapes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What ``torch.export`` wants to hear of inputs whose first dimension is the batch."""
    batch = torch.export.Dim("batch", min=1)

    def shape(tensor: Tensor) -> Any:
        return {0: batch} if tensor.ndim else None

    shapes = tuple(tree_map_only(Tensor, shape, list(args)))
    return (*shapes,) if not kwargs else {**dict(enumerate(shapes)), **tree_map_only(Tensor, shape, kwargs)}
