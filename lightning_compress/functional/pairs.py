"""What losses between a student and a teacher share."""

from __future__ import annotations

import functools

import torch
from torch import Tensor


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors in the widest of their dtypes, and in float32 at least."""
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)
    return tuple(t.to(dtype) for t in tensors)


def classes(labels: Tensor) -> Tensor:
    """The class of each sample, int64 (N,).

    Args:
        labels: Classes (N,), or probabilities of classes (N, C), of which the largest counts.

    >>> classes(torch.tensor([[0.1, 0.9], [0.7, 0.3]])).tolist()
    [1, 0]
    """
    return (labels if labels.ndim == 1 else labels.argmax(dim=1)).long()
