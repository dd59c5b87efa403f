"""Batches of small layers of equal shape: one operation serves all, and cost follows weights instead of layers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from lightning_compress.constraints.layer import Layer, local_shards

_MAX_SMALL = 2**10  # weights of a small layer: calls take longer than the work on fewer
_MAX_BATCH = 2**18  # weights in a batch, which bounds the memory of a copy
_MAX_KEPT = 32  # buffers for batches of different shapes and dtypes


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
    return max(1, _MAX_BATCH // layer.num_weights)


def stack(tensors: Sequence[Tensor]) -> Tensor:
    """Return a stack of the tensors of a batch, of shape (tensors, ...); of a single tensor a view."""
    return tensors[0].unsqueeze(0) if len(tensors) == 1 else torch.stack(list(tensors))


def stack_weights(layers: Sequence[Layer]) -> Tensor:
    """Return a stack of this rank's shards of the weights of a batch, detached; of a single layer a view."""
    return stack(local_shards([layer.parameter for layer in layers])).detach()


def stack_full_weights(layers: Sequence[Layer]) -> Tensor:
    """Return a stack of the full weights of a batch, detached; a collective if they are sharded."""
    if all(layer.group is None for layer in layers):
        return stack_weights(layers)
    return stack([layer.full(layer.weight) for layer in layers])


def any_true(flags: Sequence[Tensor]) -> bool:
    """Return True if a bool scalar is True; with a single synchronization with the GPU, whatever their number.

    >>> any_true([torch.tensor(False), torch.tensor(True)]), any_true([])
    (True, False)
    """
    return bool(flags) and bool(torch.stack([flag.to(flags[0].device) for flag in flags]).any())


class Buffers:
    """Stacks in memory that is used again, so that no step makes a view of each layer.

    >>> tensors, buffers = [torch.zeros(2), torch.ones(2)], Buffers()
    >>> buffers.unstack_(tensors, buffers.stack(tensors).mul_(3))
    >>> tensors
    [tensor([0., 0.]), tensor([3., 3.])]
    """

    def __init__(self) -> None:
        self._kept: dict[Hashable, tuple[Tensor, tuple[Tensor, ...]]] = {}

    def stack(self, tensors: Sequence[Tensor]) -> Tensor:
        """Return a stack of the tensors of a batch, valid until the next one; of a single tensor a view."""
        if len(tensors) == 1 or len({tensor.dtype for tensor in tensors}) > 1:
            return stack(tensors)
        key = _key(tensors)
        if key not in self._kept:
            if len(self._kept) == _MAX_KEPT:
                self._kept.clear()
            like = tensors[0]
            buffer = torch.empty(len(tensors), *like.shape, dtype=like.dtype, device=like.device)
            self._kept[key] = buffer, buffer.unbind()
        return torch.stack(list(tensors), out=self._kept[key][0])

    def unstack_(self, tensors: Sequence[Tensor], stacked: Tensor) -> None:
        """Write a result of :meth:`stack` that was changed in place back into the tensors."""
        if len(tensors) == 1:
            return
        buffer, views = self._kept.get(_key(tensors), (None, ()))
        torch._foreach_copy_(list(tensors), list(views if buffer is stacked else stacked.unbind()))


def _key(tensors: Sequence[Tensor]) -> Hashable:
    like = tensors[0]
    return len(tensors), like.shape, like.dtype, like.device
