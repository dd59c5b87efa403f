"""What networks and data loaders return, in the forms that are common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def logits_of(output: Any, whose: str) -> Tensor:
    """The logits in what a network returns: a tensor ``(N, C)``, or the ``logits`` of a dict or an object.

    Args:
        output: What it returns.
        whose: What messages call the network.

    Raises:
        ValueError: If there are none.
    """
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor) or found.ndim != 2:
        form = f"shape {tuple(found.shape)}" if isinstance(found, Tensor) else f"type {type(output).__name__}"
        raise ValueError(
            f"The {whose} returns no logits (N, classes) but something of {form}: name the module that returns them "
            "with output=..., or wrap the network."
        )
    return found


def labels_of(batch: Any) -> Tensor | None:
    """The labels in a batch: classes ``(N,)`` or probabilities ``(N, C)``, if there are.

    Args:
        batch: ``(inputs, labels, ...)``, or a mapping whose ``"labels"`` or ``"label"`` they are.
    """
    if isinstance(batch, Mapping):
        labels = batch.get("labels", batch.get("label"))
    else:
        labels = batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    if not isinstance(labels, Tensor):
        return None
    classes, probabilities = not labels.is_floating_point() and labels.ndim == 1, labels.is_floating_point()
    return labels if classes or (probabilities and labels.ndim == 2) else None
