"""The operators that compiled models call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_compress.functional import rounding


def inputs() -> tuple[Tensor, Tensor, tuple[Any, ...]]:
    """A gradient and values of another layout, and scale, zero point and bounds."""
    generator = torch.Generator().manual_seed(0)
    grad, x = (torch.randn(2, 3, 4, 4, generator=generator) for _ in range(2))
    return grad, x.to(memory_format=torch.channels_last), (torch.tensor(0.1), torch.tensor(3.0), -8, 7)


@pytest.mark.parametrize("name", ["round_and_clip", "mask_clipped", "pass_gradient", "learned_gradients"])
def test_operators_are_what_the_compiler_expects(name: str) -> None:
    grad, x, qparams = inputs()
    arguments = {"round_and_clip": (x, *qparams), "pass_gradient": (grad, x)}.get(name, (grad, x, *qparams))
    torch.library.opcheck(
        getattr(torch.ops.lightning_compress, name).default, arguments, test_utils=("test_schema", "test_faketensor")
    )


def test_operators_compute_the_functions() -> None:
    grad, x, qparams = inputs()
    operators = torch.ops.lightning_compress
    assert torch.equal(operators.round_and_clip(x, *qparams), rounding.round_and_clip(x, *qparams))
    assert torch.equal(operators.mask_clipped(grad, x, *qparams), rounding.mask_clipped(grad, x, *qparams))
    assert torch.equal(operators.pass_gradient(grad, x), grad)
    computed = operators.learned_gradients(grad, x, *qparams)
    assert all(map(torch.equal, computed, rounding.learned_gradients(grad, x, *qparams)))
