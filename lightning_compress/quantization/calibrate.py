"""What quantizers learn from looking: reduced over ranks, and post-training quantization, which is nothing else."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from lightning_compress.arguments import as_arguments
from lightning_compress.functional.histograms import rebin
from lightning_compress.quantization.insertion import QuantizerRef, is_quantized, quantizers_of
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.observers import RangeStatistics
from lightning_compress.quantization.quantizer import update_together
from lightning_compress.quantization.quantizer_plan import QuantizationSpec, QuantizerPlan, owners_of
from lightning_compress.quantization.tracing import Graph, recording
from lightning_compress.targets import Targets

Reduce = Callable[[Tensor], Tensor]


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    weights: QuantizationSpec = Int(8),
    activations: QuantizationSpec = Int(8),
    targets: Targets = Targets(),
) -> nn.Module:
    """Post-training quantization: a copy of a model that simulates integers, with ranges from a few batches.

    Args:
        model: The float model, which stays as it is. It is run in eval mode.
        batches: What it is called with: tensors, tuples of positional or dicts of keyword arguments.
        weights: Of the targets' weights.
        activations: Of what the targets read and make.
        targets: Which layers.

    Returns:
        The copy, in eval mode.

    Raises:
        ValueError: If there is no batch, if no target is called in the first one, or if NaN is observed.
    """
    if is_quantized(model):
        raise ValueError("calibrate: the model has quantizers already; start from float_copy(model).")
    remaining = iter(batches)
    try:
        first = next(remaining)
    except StopIteration:
        raise ValueError("calibrate: there is no batch; ranges of activations come from at least one.") from None
    prepared = copy.deepcopy(model).eval()
    with thawed(prepared.parameters()):  # nothing is trained: a frozen model is quantized like any other
        is_target = owners_of(targets.select(prepared))
    graph = trace(prepared, first)
    QuantizerPlan(weights, activations, is_target).insert_traced(prepared, graph)
    found = list(quantizers_of(prepared))
    if not found:
        raise ValueError("calibrate: the first batch calls none of the targets; is it what the model is called with?")
    for attached in found:
        attached.quantizer.observing, attached.quantizer.quantizing = 1, False
    with torch.no_grad():
        for batch in chain([first], remaining):
            call(prepared, batch)
            update([attached for attached in found if attached.quantizer.counts_batches])
    update(found)
    for attached in found:
        attached.quantizer.observing, attached.quantizer.quantizing = 0, True
    return prepared


@contextmanager
def thawed(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """While it lasts, frozen parameters are none, so that targets may be chosen among them."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def trace(model: nn.Module, inputs: Any) -> Graph:
    """The calls that a model without quantizers makes in eval mode; the model stays as it is."""
    probe = copy.deepcopy(model).eval()
    with recording(probe) as graph, torch.no_grad():
        call(probe, inputs)
    return graph


def call(model: nn.Module, inputs: Any) -> Any:
    """Calls a model with a tensor, a tuple of positional or a dict of keyword arguments."""
    args, kwargs = as_arguments(inputs)
    return model(*args, **kwargs)


def update(found: Sequence[QuantizerRef], largest: Reduce | None = None, total: Reduce | None = None) -> None:
    """Turns what quantizers have observed into their scales.

    Args:
        found: The quantizers.
        largest: Reduces a tensor to its maximum over ranks; ``None`` for one process.
        total: Reduces a tensor to its sum over ranks.

    Raises:
        ValueError: If NaN or infinity was observed.
    """
    fresh = [(attached, attached.quantizer.observed) for attached in found if attached.quantizer.observed is not None]
    if largest is not None and total is not None:
        _reduce([observed for _, observed in fresh], largest, total)
    _check_finite(fresh)
    alike: dict[Int, list[QuantizerRef]] = {}
    for attached, _ in fresh:
        alike.setdefault(attached.quantizer.integers, []).append(attached)
    for integers, group in alike.items():
        update_together(integers, group)


def _check_finite(fresh: Sequence[tuple[QuantizerRef, RangeStatistics]]) -> None:
    # One question for all: on a GPU each waits for what is under way.
    if fresh and not bool(torch.isfinite(torch.cat([observed.min_max for _, observed in fresh])).all()):
        name = next(attached.name for attached, observed in fresh if not bool(torch.isfinite(observed.min_max).all()))
        raise ValueError(f"NaN or infinity at {name!r}: training has diverged there before it was quantized.")


def _reduce(observed: Sequence[RangeStatistics], largest: Reduce, total: Reduce) -> None:
    """In place, with two collectives for all."""
    if not observed:
        return
    # Maxima of NaN are not the same everywhere; infinity stays what it is.
    min_max = largest(torch.cat([s.min_max.nan_to_num(torch.inf, torch.inf, -torch.inf) for s in observed]))
    counts = []
    for s, everywhere in zip(observed, min_max.split([len(s.min_max) for s in observed]), strict=True):
        if s.counts.numel() and bool(torch.isfinite(everywhere).all()):
            s.counts = rebin(s.counts, s.min_max, everywhere)
        s.min_max = everywhere
        counts.append(s.counts)
    if any(c.numel() for c in counts):
        flat = total(torch.cat([c.flatten() for c in counts]))
        for s, part in zip(observed, flat.split([c.numel() for c in counts]), strict=True):
            s.counts = part.view_as(s.counts)
