"""Extraction of logits from network outputs and of labels from batches, in their common formats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def extract_logits(output: Any, owner: str) -> Tensor:
    """Return the logits in the output of a network.

    Args:
        output: Tensor ``(N, C)``, or a mapping or object with such a tensor under ``logits``.
        owner: Name of the network in error messages, such as ``"teacher"``.

    Returns:
        Logits ``(N, C)``.

    Raises:
        ValueError: If the output has no logits of that shape.
    """
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        form = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"type {type(output).__name__}"
        raise ValueError(
            f"The {owner} must return logits of shape (N, C), not an output of {form}: name the module that returns "
            "them with output=..., or wrap the network."
        )
    return logits


def extract_labels(batch: Any) -> Tensor | None:
    """Return the labels in a batch, or None if it has none.

    Args:
        batch: ``(inputs, labels, ...)``, or a mapping with the key ``"labels"`` or ``"label"``.

    Returns:
        Classes ``(N,)`` of an integer dtype or probabilities ``(N, C)`` of a floating dtype.
    """
    if isinstance(batch, Mapping):
        labels = batch.get("labels", batch.get("label"))
    else:
        labels = batch[1] if isinstance(batch, Sequence) and len(batch) > 1 else None
    if not isinstance(labels, Tensor):
        return None
    # Any other tensor in second place, such as regression targets or masks, is not a label.
    is_classes = not labels.is_floating_point() and labels.ndim == 1
    is_probabilities = labels.is_floating_point() and labels.ndim == 2
    return labels if is_classes or is_probabilities else None
