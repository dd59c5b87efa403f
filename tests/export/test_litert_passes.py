"""Graphs that are rewritten for LiteRT."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_compress.export.litert_passes import crop_transposed_convolutions


@pytest.mark.parametrize(
    ("layer", "is_cropped"),
    [
        (nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1, output_padding=1), True),
        (nn.ConvTranspose2d(2, 4, 5, stride=(2, 3), padding=(2, 1), output_padding=(0, 1), groups=2, bias=False), True),
        (nn.ConvTranspose2d(2, 4, 3, stride=3, padding=2, output_padding=2, dilation=2), True),
        (nn.ConvTranspose1d(2, 4, 3, stride=2, padding=1, output_padding=1), True),
        (nn.ConvTranspose2d(2, 4, 3, stride=2, padding=1), False),
        (nn.ConvTranspose2d(2, 4, 3, stride=2, output_padding=1), False),
    ],
)
def test_output_padding(layer: nn.Module, is_cropped: bool) -> None:
    x = torch.rand(2, 2, *[6] * (layer.weight.ndim - 2))
    program = torch.export.export(layer, (x,))
    crop_transposed_convolutions(program.graph_module)
    assert any("slice" in str(node.target) for node in program.graph.nodes) == is_cropped
    torch.testing.assert_close(program.module()(x), layer(x))
