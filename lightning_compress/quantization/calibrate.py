"""Post-training quantization, and the update of scales from observed statistics."""

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
from lightning_compress.quantization.quantizer import update_all
from lightning_compress.quantization.quantizer_plan import QuantizationSpec, QuantizerPlan, owners_of
from lightning_compress.quantization.tracing import Graph, record_graph
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
    """Quantize a trained model without further training (post-training quantization).

    Args:
        model: FP32 model. It is not modified; a copy is run in eval mode.
        batches: Calibration batches, each a tensor, a tuple of positional or a dict of keyword arguments.
        weights: Specification of the weights: one for all, or by globs over module names; ``None`` keeps FP32.
        activations: Specification of the inputs and outputs of the layers, in the same form.
        targets: Layers to quantize.

    Returns:
        A fake-quantized copy in eval mode.

    Raises:
        ValueError: If ``batches`` is empty, if the first batch calls no target, if NaN or infinity is observed, or if
            the model has quantizers already.

    >>> model = calibrate(nn.Linear(2, 1), [torch.tensor([[0.0, 2.55]])])
    >>> model.quant_linear_input_0_scale
    tensor(0.0100)
    """
    if is_quantized(model):
        raise ValueError("calibrate: the model has quantizers already; start from float_copy(model).")
    remaining = iter(batches)
    try:
        first = next(remaining)
    except StopIteration:
        raise ValueError("calibrate: there is no batch; ranges of activations need at least one.") from None
    prepared = copy.deepcopy(model).eval()
    with thawed(prepared.parameters()):  # nothing is trained: a frozen model is quantized like any other
        is_target = owners_of(targets.select(prepared))
    graph = trace(prepared, first)
    QuantizerPlan(weights, activations, is_target).insert_traced(prepared, graph)
    refs = list(quantizers_of(prepared))
    if not refs:
        raise ValueError("calibrate: the first batch calls none of the targets; is it an input of the model?")
    for ref in refs:
        ref.quantizer.observing, ref.quantizer.quantizing = 1, False
    with torch.no_grad():
        for batch in chain([first], remaining):
            call(prepared, batch)
            # Moving averages take one step per batch; all other statistics are merged and searched once.
            update([ref for ref in refs if ref.quantizer.updates_per_batch])
    update(refs)
    for ref in refs:
        ref.quantizer.observing, ref.quantizer.quantizing = 0, True
    return prepared


@contextmanager
def thawed(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Set ``requires_grad`` of frozen parameters inside the context, so that they can be selected as targets."""
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


def trace(model: nn.Module, inputs: Any) -> Graph:
    """Record the calls of a model without quantizers in eval mode; a copy of the model is run."""
    traced = copy.deepcopy(model).eval()
    with record_graph(traced) as graph, torch.no_grad():
        call(traced, inputs)
    return graph


def call(model: nn.Module, inputs: Any) -> Any:
    """Call a model with a tensor, a tuple of positional or a dict of keyword arguments."""
    args, kwargs = as_arguments(inputs)
    return model(*args, **kwargs)


def update(
    refs: Sequence[QuantizerRef], all_reduce_max: Reduce | None = None, all_reduce_sum: Reduce | None = None
) -> None:
    """Update the scales of quantizers from the statistics that they have observed since the last update.

    Args:
        refs: Quantizers.
        all_reduce_max: Reduces a tensor to its maximum over ranks; ``None`` for one process.
        all_reduce_sum: Reduces a tensor to its sum over ranks.

    Raises:
        ValueError: If NaN or infinity was observed.
    """
    observed = [(ref, ref.quantizer.observed) for ref in refs if ref.quantizer.observed is not None]
    if all_reduce_max is not None and all_reduce_sum is not None:
        _reduce([statistics for _, statistics in observed], all_reduce_max, all_reduce_sum)
    _check_finite(observed)
    by_spec: dict[Int, list[QuantizerRef]] = {}
    for ref, _ in observed:
        by_spec.setdefault(ref.quantizer.spec, []).append(ref)
    for spec, group in by_spec.items():
        update_all(spec, group)


def _check_finite(observed: Sequence[tuple[QuantizerRef, RangeStatistics]]) -> None:
    # One synchronization with the GPU for all quantizers; the culprit is looked up in the error case only.
    if observed and not bool(torch.isfinite(torch.cat([statistics.min_max for _, statistics in observed])).all()):
        name = next(ref.name for ref, statistics in observed if not bool(torch.isfinite(statistics.min_max).all()))
        raise ValueError(f"NaN or infinity at {name!r}: training has diverged there before it was quantized.")


def _reduce(observed: Sequence[RangeStatistics], all_reduce_max: Reduce, all_reduce_sum: Reduce) -> None:
    """Reduce all statistics over ranks in place, with two collectives."""
    if not observed:
        return
    # The maximum with NaN differs between backends; as infinity it reaches all ranks, and all raise the same error.
    min_max = all_reduce_max(torch.cat([s.min_max.nan_to_num(torch.inf, torch.inf, -torch.inf) for s in observed]))
    counts = []
    for s, reduced in zip(observed, min_max.split([len(s.min_max) for s in observed]), strict=True):
        # Counts can be added once all ranks have the same bins: those of the largest range.
        if s.counts.numel() and bool(torch.isfinite(reduced).all()):
            s.counts = rebin(s.counts, s.min_max, reduced)
        s.min_max = reduced
        counts.append(s.counts)
    if any(c.numel() for c in counts):
        flat = all_reduce_sum(torch.cat([c.flatten() for c in counts]))
        for s, part in zip(observed, flat.split([c.numel() for c in counts]), strict=True):
            s.counts = part.view_as(s.counts)
