"""Tensors of a state dict."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_compress.packing.tensors import tensors_of, to_half


def test_each_tensor_is_dense_and_in_memory() -> None:
    sound = {"a": torch.ones(3), "b": torch.ones(2, 2, dtype=torch.complex64), "c": torch.ones(0)}
    assert tensors_of(sound).keys() == sound.keys()
    for other in (torch.ones(3, device="meta"), torch.eye(3).to_sparse()):
        with pytest.raises(ValueError, match=r"'d' \(torch.float32, .* cannot be packed; only dense tensors in memory"):
            tensors_of({**sound, "d": other})


@pytest.mark.parametrize(
    ("tensor", "is_rounded"),
    [
        (torch.tensor([65504.0, -1e-9, torch.inf, torch.nan]), True),
        (torch.tensor([1.0], dtype=torch.float64), True),
        (torch.tensor([65520.0]), False),
        (torch.tensor([1.0], dtype=torch.bfloat16), False),
        (torch.tensor([1.0], dtype=torch.float16), False),
        (torch.tensor([1]), False),
    ],
)
def test_which_tensors_are_rounded(tensor: Tensor, is_rounded: bool) -> None:
    rounded = to_half(tensor)
    assert (rounded is not None) == is_rounded
    assert rounded is None or torch.equal(rounded.isnan(), tensor.isnan())
