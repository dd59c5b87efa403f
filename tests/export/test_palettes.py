"""Palettes of weights with few values."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_compress.export.palettes import find_palette


def clustered(num_values: int, shape: tuple[int, ...], *, groups: int = 1) -> Tensor:
    """A weight with other values in each group of output channels."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(groups, num_values, generator=generator)
    rows = torch.randint(num_values, (groups, torch.Size(shape).numel() // groups), generator=generator)
    return values.gather(1, rows).view(shape)


@pytest.mark.parametrize(
    ("weight", "bits", "groups"),
    [
        (clustered(16, (32, 16, 3, 3)), 4, 1),
        (clustered(17, (32, 16, 3, 3)), 6, 1),  # there is no type of 5 bits
        (clustered(2, (64, 32)), 1, 1),
        (clustered(4, (8, 64, 3, 3), groups=8), 2, 8),
        (clustered(8, (8, 256, 3, 3), groups=2), 3, 2),
    ],
)
def test_values_are_kept_bit_by_bit(weight: Tensor, bits: int, groups: int) -> None:
    palette = find_palette(weight)
    assert palette is not None
    assert (palette.bits, len(palette.table)) == (bits, groups)
    assert torch.equal(palette.value, weight)
    assert palette.num_bytes == weight.numel() * bits / 8 + 4 * groups * 2**bits


def test_zeros_keep_their_sign() -> None:
    weight = torch.tensor([[0.0, -0.0, 1.0, -0.0]]).repeat(4, 8)
    palette = find_palette(weight)
    assert palette is not None
    assert torch.equal(palette.value.signbit(), weight.signbit())


def test_many_values_and_small_tensors_have_none() -> None:
    assert find_palette(torch.randn(32, 64)) is None
    assert find_palette(torch.randn(4, 2)) is None
    assert find_palette(torch.ones(64)) is None
    assert find_palette(torch.ones(64, 8, dtype=torch.float64)) is None
    assert find_palette(torch.ones(0, 8)) is None
