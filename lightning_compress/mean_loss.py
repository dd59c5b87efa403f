"""Loss of a model over batches, comparable between variants of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Any], Tensor]


def mean_loss(model: nn.Module, batches: Sequence[Any], loss: Loss) -> float:
    """Return the mean loss over batches under a fixed seed; the global random state is restored."""
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(0)
        return sum(float(loss(model, batch)) for batch in batches) / len(batches)
