"""Bit-packed masks and N:M patterns."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a bool tensor into uint8, eight entries per byte, the first in the lowest bit.

    >>> pack_bits(torch.tensor([[True, False], [True, True]])).tolist()
    [13]
    """
    flat = mask.flatten().to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    # The bits of a byte are disjoint, so their sum is their bitwise or, and fits uint8.
    return (flat << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """Unpack a bool tensor of ``shape`` from the bytes of :func:`pack_bits`.

    Raises:
        ValueError: If dtype or number of bytes do not fit the shape.

    >>> unpack_bits(torch.tensor([13], dtype=torch.uint8), torch.Size([2, 2])).tolist()
    [[True, False], [True, True]]
    """
    if packed.dtype != torch.uint8 or len(packed) != -(-shape.numel() // 8):
        raise ValueError(
            f"{len(packed)} packed elements of {packed.dtype} do not match a mask of shape {tuple(shape)}, which takes "
            f"{-(-shape.numel() // 8)} of torch.uint8."
        )
    bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[: shape.numel()].view(shape).bool()


def keep_n_of_m(scores: Tensor, *, n: int, m: int, dim: int) -> Tensor:
    """Return a mask of the ``n`` highest scores in each group of ``m`` consecutive ones along a dimension.

    Mishra et al. 2021 (arXiv:2104.08378) for 2:4 along the input dimension.

    Args:
        scores: Any shape; the size of ``dim`` must be a multiple of ``m``.
        n: Number of entries kept in a group.
        m: Size of a group.
        dim: Dimension along which groups are formed.

    Returns:
        Bool tensor of the same shape, True where kept; of equal scores the later are kept.

    >>> keep_n_of_m(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), n=2, m=4, dim=1).tolist()
    [[True, False, True, False]]
    """
    groups = scores.movedim(dim, -1).unflatten(-1, (-1, m))
    # Stable, as topk breaks ties differently on each device.
    ascending = groups.argsort(dim=-1, stable=True)
    keep = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, ascending[..., : m - n], False)
    return keep.flatten(-2).movedim(-1, dim)


def is_n_of_m(weight: Tensor, *, n: int, m: int, dim: int) -> bool:
    """Return True if each group of ``m`` consecutive entries along a dimension has at most ``n`` nonzero ones.

    Args:
        weight: Any shape.
        n: Number of nonzero entries allowed in a group.
        m: Size of a group.
        dim: Dimension along which groups are formed; if its size is not a multiple of ``m``, the result is False.

    >>> is_n_of_m(torch.tensor([[4.0, 0.0, 3.0, 0.0]]), n=2, m=4, dim=1)
    True
    """
    if weight.shape[dim] % m:
        return False
    groups = weight.movedim(dim, -1).unflatten(-1, (-1, m))
    return bool(((groups != 0).sum(dim=-1) <= n).all())
