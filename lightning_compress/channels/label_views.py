"""Labels of views that split or merge dimensions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from lightning_compress.channels.channel_labels import depends, narrow


def view_labels(axis: Tensor, shape: Sequence[int]) -> Tensor:
    """Return labels in another shape; dimensions along which they do not vary are not materialized.

    >>> import torch
    >>> view_labels(torch.arange(6).view(1, 6, 1).expand(9, 6, 4), (3, 3, 2, 3, 4)).stride()
    (0, 0, 3, 1, 0)
    """
    small = axis
    sizes = [1] * len(shape)
    for old, new in common_factors(axis.shape, shape):
        if any(depends(axis, dim) for dim in old):
            for dim in new:
                sizes[dim] = shape[dim]
        else:
            small = narrow(small, old)
    return small.reshape(sizes).expand(tuple(shape))


def split_labels(axis: Tensor, shape: Sequence[int]) -> Iterator[Tensor]:
    """Yield the labels of each dimension that a view splits, in the shape of its parts without those of size 1."""
    for old, new in common_factors(axis.shape, shape):
        parts = [shape[dim] for dim in new if shape[dim] > 1]
        if [dim for dim in old if axis.shape[dim] > 1] and len(parts) > 1:
            varying = [dim for dim in old if depends(axis, dim)]
            if len(varying) == 1 and axis.shape[varying[0]] == _product(parts):
                yield narrow(axis, set(range(axis.ndim)) - set(varying)).reshape(parts)


def common_factors(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield dimensions of two shapes of equally many elements in the least runs of equal products.

    >>> list(common_factors((2, 6, 5), (2, 3, 2, 5)))
    [([0], [0]), ([1], [1, 2]), ([2], [3])]
    """
    i = j = 0
    while i < len(old) or j < len(new):
        first, second = i, j
        i, j = min(i + 1, len(old)), min(j + 1, len(new))
        while _product(old[first:i]) != _product(new[second:j]):
            if _product(old[first:i]) < _product(new[second:j]):
                i += 1
            else:
                j += 1
        yield list(range(first, i)), list(range(second, j))


def _product(sizes: Sequence[int]) -> int:
    product = 1
    for size in sizes:
        product *= size
    return product
