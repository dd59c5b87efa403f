"""Dtype conversions shared by the distillation losses."""

from __future__ import annotations

import torch
from torch import Tensor


def promote_dtypes(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both tensors to their common dtype, at least float32.

    >>> student, teacher = promote_dtypes(torch.ones(2, dtype=torch.float16), torch.ones(2, dtype=torch.bfloat16))
    >>> student.dtype, teacher.dtype
    (torch.float32, torch.float32)
    """
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.to(dtype)


def class_indices(labels: Tensor) -> Tensor:
    """Return the class index of each sample, int64 of shape (N,).

    Args:
        labels: Class indices (N,), or class probabilities (N, C), of which the argmax is taken.

    >>> class_indices(torch.tensor([[0.1, 0.9], [0.7, 0.3]])).tolist()
    [1, 0]
    """
    # int64, as older versions of torch gather and scatter by no other integer dtype.
    return (labels if labels.ndim == 1 else labels.argmax(dim=1)).long()
