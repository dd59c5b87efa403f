from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.constraints.finite import check_finite
from lightning_compress.constraints.layer import Layer


def check(*tensors: Tensor) -> None:
    layers = [Layer(f"{i}.weight", nn.Parameter(torch.ones(2, 2))) for i in range(len(tensors))]
    check_finite(layers, tensors, quantity="weights", purpose="ranked")


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_first_layer_with_such_a_value_is_named(value: float, dtype: torch.dtype) -> None:
    bad = torch.ones(3, 2, dtype=dtype)
    bad[1, 1] = value
    with pytest.raises(ValueError, match=r"^'1\.weight' has weights that are NaN or infinite, which cannot be ranked"):
        check(torch.ones(2), bad, bad)


def test_finite_and_empty_tensors_pass() -> None:
    check(torch.tensor([65504.0], dtype=torch.float16), torch.tensor([1e300], dtype=torch.float64), torch.zeros(0, 4))
    check(torch.zeros(0, 4))
    check()
