"""Expansions that arithmetic does not need."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.export.broadcasting import remove_expansions


@torch.library.custom_op("lightning_compress_tests::quantize_per_tensor", mutates_args=())
def quantized(x: Tensor) -> Tensor:
    return x.clone()


quantized.register_fake(torch.empty_like)


class Call(nn.Module):
    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.function(x, y)


@pytest.mark.parametrize(
    ("function", "is_removed"),
    [
        (lambda x, y: x * y.expand_as(x), True),
        (lambda x, y: y.expand(2, 3, 4) - x, True),
        (lambda x, y: (x / y.expand(2, 3, 4)) + y.expand(2, 3, 4), True),
        (lambda x, y: x * quantized(y.expand(2, 3, 4)), True),
        (lambda x, y: quantized(y.expand(2, 3, 4)) * quantized(y.expand(2, 3, 4)), False),  # one of them
        (lambda x, y: y.expand(2, 3, 4) * 2.0, False),  # nothing else has the shape
        (lambda x, y: y.expand(2, 3, 4) * y, False),
        (lambda x, y: torch.cat([x, y.expand(2, 3, 4)]), False),
        (lambda x, y: (z := y.expand(2, 3, 4)).sum() + x * z, False),
        (lambda x, y: (z := y.expand(2, 3, 4)) * z, False),
    ],
)
def test_expansions(function: Callable[[Tensor, Tensor], Tensor], is_removed: bool) -> None:
    x, y = torch.rand(2, 3, 4), torch.rand(3, 1) + 0.5
    program = torch.export.export(Call(function), (x, y))
    remove_expansions(program.graph_module)
    targets = [str(node.target) for node in program.graph.nodes]
    assert any("expand" in target for target in targets) != is_removed
    torch.testing.assert_close(program.module()(x, y), function(x, y), rtol=0, atol=0)
