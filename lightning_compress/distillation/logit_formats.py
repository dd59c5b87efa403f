"""Logits in outputs of networks, and their positions: samples, tokens, pixels or anchors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_compress.distillation.batch_formats import Annotations

_OUTPUT = {"teacher": "Teacher(output=...)"}


def extract_logits(output: Any, owner: str) -> list[Tensor]:
    """Return the logits in the output of a network.

    Args:
        output: A tensor. Or a mapping or object with tensors under ``logits``, else under names with ``logits`` in
            them (``start_logits``, ``end_logits``), else under ``out`` as in torchvision. Or a tuple, of which the
            first tensor counts, with all that have its batch size, number of classes and number of dimensions.
        owner: Name of the network in error messages, such as ``"teacher"``.

    Returns:
        One tensor for each head.

    Raises:
        ValueError: If the output has no logits.
    """
    named = _named_logits(output)
    values = [output] if isinstance(output, Tensor) else named or (output if isinstance(output, Sequence) else [])
    heads = [value for value in _flatten(values) if value.is_floating_point() and value.ndim]
    if not heads:
        form = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"type {type(output).__name__}"
        raise ValueError(
            f"The {owner} must return logits such as (N, C), (N, L, C) or (N, C, H, W), not an output of {form}: name "
            f"the module that returns them with {_OUTPUT.get(owner, 'output=...')}, or wrap the network."
        )
    # Features may follow the logits in a tuple.
    return heads if named else [head for head in heads if _kind(head) == _kind(heads[0])]


def pair_heads(student: Sequence[Tensor], teachers: Sequence[Sequence[Tensor]]) -> list[tuple[Tensor, list[Tensor]]]:
    """Pair the logits of a student with those of its teachers, moved to the student's device and detached.

    Auxiliary heads that only one of them has, as networks in training mode, are left out.

    Args:
        student: Logits of each head.
        teachers: The same of each teacher.

    Raises:
        ValueError: If numbers of heads or shapes differ.
    """
    counts = {len(heads) for heads in (student, *teachers)}
    if len(counts - {1}) > 1:
        raise ValueError(
            f"The student returns {len(student)} tensors of logits and the teacher {max(map(len, teachers))}: name the "
            "student's module that returns the logits to compare with output=..., or wrap the networks."
        )
    pairs = [(own, [heads[index] for heads in teachers]) for index, own in enumerate(student[: min(counts)])]
    for own, others in pairs:
        for other in others:
            if other.shape != own.shape:
                raise ValueError(
                    f"The student returns logits of shape {tuple(own.shape)} and the teacher of shape "
                    f"{tuple(other.shape)}: logit losses need the same classes and positions; feature losses do not."
                )
    return [(own, [other.detach().to(own.device) for other in others]) for own, others in pairs]


@dataclass(frozen=True)
class Positions:
    """Positions at which logits are compared, with their labels.

    Attributes:
        class_dim: Dimension of the classes.
        kept: Boolean tensor that is False at positions to leave out, in the order of :meth:`rows`, or ``None``.
        labels: Classes ``(M,)`` or probabilities ``(M, C)`` of the kept positions, or ``None``.
    """

    class_dim: int
    kept: Tensor | None = None
    labels: Tensor | None = None

    def rows(self, logits: Tensor) -> Tensor:
        """Return logits of any shape as ``(M, C)``, one row for each kept position."""
        if logits.ndim != 2:
            columns = logits[:, None] if logits.ndim == 1 else logits.movedim(self.class_dim, -1)
            logits = columns.reshape(-1, columns.shape[-1])
        return logits if self.kept is None else logits[self.kept]


def find_positions(
    logits: Tensor, annotations: Annotations, *, class_dim: int | None = None, head: int = 0, num_heads: int = 1
) -> Positions:
    """Find the positions of logits: their labels where those fit, without padding and ignored labels.

    Labels outside of the classes, such as -100, are ignored where samples have several labels.

    Args:
        logits: ``(N, C)``, ``(N, L, C)``, ``(N, C, H, W)`` or any other shape.
        annotations: Labels and padding mask of the batch.
        class_dim: Dimension of the classes of logits with three dimensions or more. By default the last of three and
            the second of more, unless only the other one fits labels or mask.
        head: Index of the head.
        num_heads: Number of heads. If there are as many labels, each head has its own.

    Raises:
        ValueError: If ``class_dim`` is not a dimension of the logits.
    """
    dim = _class_dim(logits, annotations, class_dim)
    positions, mask = _without(logits, dim), annotations.mask
    fitting = [label for label in annotations.labels if _fits(label, logits, positions)]
    labels = fitting[head if len(fitting) >= num_heads else 0] if fitting else None
    masks = [mask.flatten()] if mask is not None and mask.numel() > len(mask) and _fits(mask, logits, positions) else []
    if labels is not None and labels.is_floating_point():
        labels = Positions(dim).rows(labels)
    elif labels is not None:
        # A batch without labels of its own (-100) may still be distilled, but not a token or pixel.
        masks += [_is_class(labels.flatten(), logits, dim)] if labels.numel() > len(labels) else []
        labels = labels.flatten()
    kept = torch.stack(masks).all(0) if masks else None
    return Positions(dim, kept, labels if labels is None or kept is None else labels[kept])


def _is_class(labels: Tensor, logits: Tensor, dim: int) -> Tensor:
    if logits.shape[dim] < 2 or logits.ndim < 2:  # a regression
        return labels != -100
    return (labels >= 0) & (labels < logits.shape[dim])


def _named_logits(output: Any) -> list[Any]:
    fields = {name: value for name, value in _fields(output).items() if value is not None}
    if "logits" in fields:
        return [fields["logits"]]
    named = [value for name, value in fields.items() if "logits" in str(name)]
    return named or [fields[name] for name in ("out",) if name in fields]


def _fields(output: Any) -> Mapping[str, Any]:
    if isinstance(output, (Mapping, Tensor)):
        return output if isinstance(output, Mapping) else {}
    fields: Mapping[str, Any] = output._asdict() if hasattr(output, "_asdict") else getattr(output, "__dict__", {})
    return fields


def _flatten(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _flatten(value)


def _kind(logits: Tensor) -> tuple[int, ...]:
    """Return the number of dimensions, batch size and number of classes; maps may differ in resolution."""
    shape = logits.shape
    return (logits.ndim, shape[0], shape[-1]) if logits.ndim == 3 else (logits.ndim, *shape[:2])


def _without(logits: Tensor, dim: int) -> torch.Size:
    return torch.Size(size for index, size in enumerate(logits.shape) if index != dim or logits.ndim == 1)


def _class_dim(logits: Tensor, annotations: Annotations, given: int | None) -> int:
    if logits.ndim < 3:
        return logits.ndim - 1
    if given is not None:
        if given not in range(-logits.ndim, logits.ndim) or given % logits.ndim == 0:
            raise ValueError(
                f"class_dim={given} is not a dimension of classes of logits {tuple(logits.shape)}: give the index of "
                "the one with an entry for each class."
            )
        return given % logits.ndim
    first, other = (2, 1) if logits.ndim == 3 else (1, logits.ndim - 1)
    hints = [hint for hint in (*annotations.labels, annotations.mask) if hint is not None]
    fits = {dim: any(_fits(hint, logits, _without(logits, dim)) for hint in hints) for dim in (first, other)}
    return other if fits[other] and not fits[first] else first


def _fits(labels: Tensor, logits: Tensor, positions: torch.Size) -> bool:
    if labels.is_floating_point():
        return labels.shape == logits.shape and labels.ndim > 1
    shape = [size for size in labels.shape[1:] if size > 1]
    # Logits (N, C) may be those of tokens that the network has flattened.
    flattened = logits.ndim == 2 and labels.ndim > 1 and labels.numel() == logits.shape[0]
    return flattened or (labels.shape[:1] == positions[:1] and shape == [size for size in positions[1:] if size > 1])
