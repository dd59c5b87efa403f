"""What losses between a student and a teacher share."""

from __future__ import annotations

import torch
from torch import Tensor


def widened(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider of their dtypes, and in float32 at least."""
    dtype = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    return student.to(dtype), teacher.to(dtype)


def classes(labels: Tensor) -> Tensor:
    """The class of each sample, int64 (N,).

    Args:
        labels: Classes (N,), or probabilities of classes (N, C), of which the largest counts.

    >>> classes(torch.tensor([[0.1, 0.9], [0.7, 0.3]])).tolist()
    [1, 0]
    """
    return (labels if labels.ndim == 1 else labels.argmax(dim=1)).long()
