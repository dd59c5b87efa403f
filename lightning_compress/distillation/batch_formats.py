"""Extraction of labels and padding masks from batches and from the arguments of a network, in their common formats."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

_LABELS = ("labels", "label", "start_positions", "end_positions")
# Decoders come first: their logits have the length of the targets, and the attention mask that of the inputs.
_KEPT, _PADDED = ("decoder_attention_mask", "attention_mask"), (
    "padding_mask", "key_padding_mask", "src_key_padding_mask",
)  # fmt: skip


@dataclass(frozen=True)
class Annotations:
    """Tensors of a batch that say how outputs are to be compared.

    Attributes:
        labels: Candidates for labels of any shape, the likeliest first.
        mask: Boolean tensor ``(N, L)`` that is False at padding tokens, or ``None``.
    """

    labels: tuple[Tensor, ...] = ()
    mask: Tensor | None = None

    @property
    def sample_labels(self) -> Tensor | None:
        """Classes ``(N,)`` of an integer dtype or probabilities ``(N, C)`` of a floating dtype, or None."""
        labels = self.labels[0] if self.labels else None
        # Any other tensor in first place, such as regression targets or masks, is no label of a sample.
        is_labels = labels is not None and labels.ndim == (2 if labels.is_floating_point() else 1)
        return labels if is_labels else None


def extract_annotations(batch: Any, arguments: Mapping[str, Any]) -> Annotations:
    """Find the labels and the padding mask of a batch.

    Args:
        batch: ``(inputs, labels, ...)``, or a mapping with the key ``"labels"`` or ``"label"``, or
            ``"start_positions"`` and ``"end_positions"``.
        arguments: Arguments of the network by name, where labels and padding masks may be, too: ``attention_mask`` (1
            at tokens), or ``padding_mask``, ``key_padding_mask`` or ``src_key_padding_mask`` (True at padding).
    """
    labels = tuple(label for label in _labels(batch, arguments) if isinstance(label, Tensor))
    return Annotations(labels, _mask({**batch, **arguments} if isinstance(batch, Mapping) else arguments))


@torch.compiler.disable
def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a module's ``forward`` by name, those of ``*args`` by position, defaults included.

    >>> named_arguments(nn.Linear(2, 2), (1,), {})
    {'input': 1}
    """
    try:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
    except (TypeError, ValueError):  # without a signature, as a ScriptModule
        return {**{str(index): value for index, value in enumerate(args)}, **kwargs}
    bound.apply_defaults()
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            named |= {str(index): each for index, each in enumerate(value)}
        else:
            named[name] = value
    return named


def _labels(batch: Any, arguments: Mapping[str, Any]) -> Iterator[Any]:
    for mapping in (batch, arguments):
        if isinstance(mapping, Mapping):
            yield from (mapping.get(name) for name in _LABELS)
    if not isinstance(batch, Sequence) or isinstance(batch, str):
        return
    # Masks and token types are inputs of the network; labels only are where a margin is added to their logits.
    inputs = {id(value) for value in arguments.values()}
    candidates = [value for value in batch[1:] if isinstance(value, Tensor) and value.dtype != torch.bool]
    yield from sorted(candidates, key=lambda value: id(value) in inputs)


def _mask(named: Mapping[str, Any]) -> Tensor | None:
    kept = next((named[name] for name in _KEPT if name in named), None)
    if isinstance(kept, Tensor):
        return kept != 0
    padded = next((named[name] for name in _PADDED if isinstance(named.get(name), Tensor)), None)
    return None if padded is None else padded == 0
