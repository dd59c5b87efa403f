"""Masks as tensors: packing, and the best n of every m weights."""

from __future__ import annotations

import torch
from torch import Tensor


def pack_bits(mask: Tensor) -> Tensor:
    """A bool tensor as bytes, eight entries each, the first in the lowest bit.

    >>> pack_bits(torch.tensor([[True, False], [True, True]])).tolist()
    [13]
    """
    flat = mask.flatten().to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -len(flat) % 8)).view(-1, 8)
    return (flat << torch.arange(8, dtype=torch.uint8, device=flat.device)).sum(dim=1, dtype=torch.uint8)


def unpack_bits(packed: Tensor, shape: torch.Size) -> Tensor:
    """The bool tensor of ``shape`` that :func:`pack_bits` packed.

    Raises:
        ValueError: If the number of bytes does not fit the shape.
    """
    if packed.dtype != torch.uint8 or len(packed) != -(-shape.numel() // 8):
        raise ValueError(f"{len(packed)} packed bytes do not make a mask of shape {tuple(shape)}.")
    bits = (packed.unsqueeze(1) >> torch.arange(8, dtype=torch.uint8, device=packed.device)) & 1
    return bits.flatten()[: shape.numel()].view(shape).bool()


def keep_n_of_m(scores: Tensor, *, n: int, m: int, dim: int) -> Tensor:
    """True for the ``n`` highest scores of every ``m`` consecutive ones along ``dim``; of equal ones the later stay.

    Mishra et al. 2021 (arXiv:2104.08378) for 2:4 along the input dimension.

    >>> keep_n_of_m(torch.tensor([[4.0, 1.0, 3.0, 2.0]]), n=2, m=4, dim=1).tolist()
    [[True, False, True, False]]
    """
    groups = scores.movedim(dim, -1).unflatten(-1, (-1, m))
    ascending = groups.argsort(dim=-1, stable=True)
    keep = torch.ones_like(groups, dtype=torch.bool).scatter_(-1, ascending[..., : m - n], False)
    return keep.flatten(-2).movedim(-1, dim)
