"""Dtype conversions shared by the distillation losses."""

from __future__ import annotations

import pytest
import torch

from lightning_compress.functional.dtypes import class_indices, promote_dtypes


@pytest.mark.parametrize(
    ("student", "teacher", "both"),
    [
        (torch.float16, torch.bfloat16, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.float32, torch.bfloat16, torch.float32),
        (torch.float16, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
    ],
    ids=str,
)
def test_promote_dtypes(student: torch.dtype, teacher: torch.dtype, both: torch.dtype) -> None:
    result = promote_dtypes(torch.ones(2, dtype=student), torch.ones(2, dtype=teacher))
    assert [x.dtype for x in result] == [both, both]


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
def test_class_indices(dtype: torch.dtype) -> None:
    """Older versions of torch gather by int64 alone."""
    labels = class_indices(torch.tensor([2, 0], dtype=dtype))
    assert labels.dtype == torch.int64
    assert labels.tolist() == [2, 0]
    assert class_indices(torch.tensor([[0.1, 0.2, 0.7], [0.5, 0.3, 0.2]])).tolist() == [2, 0]
