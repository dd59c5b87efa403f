"""Batches of small layers of equal shape: one operation serves all, and cost follows weights instead of layers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from lightning_compress.constraints.layer import Layer, local_shards

_MAX_SMALL = 2**10  # weights of a small layer: calls take longer than the work on fewer
_MAX_BATCH = 2**18  # weights in a batch, which bounds the memory of a copy


def make_batches(layers: Sequence[Layer]) -> list[list[int]]:
    """Return the indices of layers in batches: small ones of the same kind and shape together, all others alone.

    Shapes are those of full weights, so that batches are the same on all ranks.

    >>> layers = [Layer(f"{i}.weight", torch.nn.Parameter(torch.ones(2, 1 + i % 2))) for i in range(3)]
    >>> make_batches(layers)
    [[0, 2], [1]]
    """
    alike: dict[Hashable, list[int]] = {}
    for i, layer in enumerate(layers):
        alike.setdefault(i if layer.num_weights > _MAX_SMALL else layer.kind, []).append(i)
    return [
        members[start : start + _batch_size(layers[members[0]])]
        for members in alike.values()
        for start in range(0, len(members), _batch_size(layers[members[0]]))
    ]


def _batch_size(layer: Layer) -> int:
    return max(1, _MAX_BATCH // max(1, layer.num_weights))


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Return a stack of the tensors of a batch, of shape (tensors, ...); of a single tensor a view."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def stack_weights(layers: Sequence[Layer]) -> Tensor:
    """Return a stack of this rank's shards of the weights of a batch, detached; of a single layer a view."""
    return stack(local_shards([layer.parameter for layer in layers])).detach()


def unstack_(tensors: Sequence[Tensor], stacked: Tensor) -> None:
    """Write a stack that was changed in place back into the tensors of :func:`stack`."""
    if len(tensors) > 1:
        torch._foreach_copy_(list(tensors), list(stacked.unbind()))
