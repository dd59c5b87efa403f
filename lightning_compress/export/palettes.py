"""Weights with few values as indices of palettes, also called lookup tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_BITS = (1, 2, 3, 4, 6, 8)  # of the types of indices in Core ML


@dataclass(frozen=True)
class Palette:
    """Weight as indices of one palette, or of one for each group of output channels.

    Attributes:
        indices: uint8, of the weight's shape.
        table: FP32, ``(groups, 1, ..., 1, 2**bits, 1)``: a palette for each group in the first dimension.
        bits: Bits of an index.
    """

    indices: Tensor
    table: Tensor
    bits: int

    @property
    def num_bytes(self) -> int:
        """Bytes of indices and palettes."""
        return self.indices.numel() * self.bits // 8 + 4 * self.table.numel()

    @property
    def value(self) -> Tensor:
        """The weight."""
        groups = self.table.shape[0]
        rows = self.indices.reshape(groups, -1).long()
        return self.table.view(groups, -1).gather(1, rows).view(self.indices.shape)


def find_palette(weight: Tensor) -> Palette | None:
    """Return the palettes of an FP32 weight that take the fewest bytes, or ``None`` if it takes no more than they do.

    The values of the palettes are those of the weight, bit by bit. Here each row has a palette of two values:

    >>> import torch
    >>> palette = find_palette(torch.tensor([[0.5, -1.0, 0.5, -1.0], [2.0, 0.5, 2.0, 0.5]]).repeat(1, 4))
    >>> palette.bits, palette.table.flatten().tolist()
    (1, [-1.0, 0.5, 0.5, 2.0])
    """
    if weight.ndim < 2 or weight.dtype != torch.float32 or not weight.numel():
        return None
    channels = weight.shape[0]
    # Patterns of bits: a zero keeps its sign.
    patterns = weight.detach().cpu().contiguous().view(torch.int32).view(channels, -1)
    if _most_values(patterns) > 2 ** _BITS[-1]:
        return None
    sizes = [size for size in range(1, channels + 1) if channels % size == 0]
    groups = [patterns.view(channels // size, -1) for size in sizes]
    palettes = [_palettize(each, weight) for each in groups if _most_values(each) <= 2 ** _BITS[-1]]
    best = min(palettes, key=lambda palette: palette.num_bytes)
    return best if best.num_bytes < 4 * weight.numel() else None


def _most_values(groups: Tensor) -> int:
    """Return the largest number of different values in a row."""
    return int((groups.sort(1).values.diff(dim=1) != 0).sum(1).max()) + 1


def _palettize(groups: Tensor, weight: Tensor) -> Palette:
    rows = [row.unique(return_inverse=True) for row in groups]
    bits = next(bits for bits in _BITS if 2**bits >= max(len(values) for values, _ in rows))
    table = torch.zeros(len(rows), 2**bits, dtype=torch.int32)
    for row, (values, _) in zip(table, rows, strict=True):
        row[: len(values)] = values
    indices = torch.stack([inverse for _, inverse in rows]).to(torch.uint8).view(weight.shape)
    return Palette(indices, table.view(torch.float32).view(len(rows), *[1] * (weight.ndim - 1), 2**bits, 1), bits)
