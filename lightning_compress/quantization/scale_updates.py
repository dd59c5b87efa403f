"""Update of the scales of activation quantizers from their observed statistics, reduced over ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce

import torch
from torch import Tensor

from lightning_compress.functional.histograms import rebin
from lightning_compress.quantization.finite_ranges import FiniteRanges
from lightning_compress.quantization.insertion import QuantizerRef
from lightning_compress.quantization.int_spec import Int
from lightning_compress.quantization.observers import RangeStatistics
from lightning_compress.quantization.quantizer import compute_qparams

Reduce = Callable[[Tensor], Tensor]


def update_scales(
    refs: Sequence[QuantizerRef],
    all_reduce_max: Reduce | None = None,
    all_reduce_sum: Reduce | None = None,
    finite: FiniteRanges | None = None,
) -> None:
    """Update the scales of quantizers from the statistics that they have observed since the last update.

    Args:
        refs: Quantizers.
        all_reduce_max: Reduces a tensor to its maximum over ranks; ``None`` for one process.
        all_reduce_sum: Reduces a tensor to its sum over ranks.
        finite: Check of a fit, which may be made some batches later; by default all is checked in this call.

    Raises:
        ValueError: If NaN or infinity was observed.
    """
    observed = [(ref, ref.quantizer.observed) for ref in refs if ref.quantizer.observed is not None]
    if all_reduce_max is not None and all_reduce_sum is not None:
        _reduce([statistics for _, statistics in observed], all_reduce_max, all_reduce_sum)
    check = FiniteRanges() if finite is None else finite
    check.add([ref.name for ref, _ in observed], [statistics.min_max for _, statistics in observed])
    # A range search waits for the device anyway, and has no result without finite values.
    if finite is None or any(ref.quantizer.spec.observer.bins for ref, _ in observed if ref.quantizer.spec.observer):
        check.check()
    _merge_shared([ref for ref, _ in observed])
    by_spec: dict[Int, list[QuantizerRef]] = {}
    for ref, _ in observed:
        by_spec.setdefault(ref.quantizer.spec, []).append(ref)
    for spec, group in by_spec.items():
        _update_group(spec, group)


def _merge_shared(refs: Sequence[QuantizerRef]) -> None:
    """Give quantizers with one scale the statistics of all of them, from which they compute the same."""
    groups = {id(ref.quantizer.shared): ref.quantizer.shared for ref in refs if ref.quantizer.shared}
    for group in groups.values():
        members = [quantizer for quantizer in group if quantizer.observed is not None]
        merged = reduce(RangeStatistics.merge, [q.observed for q in members if q.observed is not None])
        for quantizer in members:
            quantizer.observed = merged


def _update_group(spec: Int, refs: Sequence[QuantizerRef]) -> None:
    """Update activation quantizers of one specification, batched where possible."""
    observer = spec.observer
    assert observer is not None
    if observer.bins:
        # A range search is dominated by its histograms, so that batching would save nothing.
        for ref in refs:
            ref.quantizer.update(ref.module)
        return
    # One row per quantizer: a few kernels for the whole model instead of a few per tensor, at every step.
    observed = [ref.quantizer.observed for ref in refs]
    new = [s.min_max for s in observed if s is not None]
    previous = [
        n if ref.quantizer.statistics is None else ref.quantizer.statistics.min_max
        for ref, n in zip(refs, new, strict=True)
    ]
    none = new[0].new_empty(len(new), 0)
    statistics = observer.accumulate(RangeStatistics(torch.cat(previous), none), RangeStatistics(torch.cat(new), none))
    scale, zero_point = compute_qparams(spec, statistics)
    for i, ref in enumerate(refs):
        ref.quantizer.statistics = RangeStatistics(statistics.min_max[i : i + 1], none[i : i + 1])
        ref.quantizer.observed, ref.quantizer.ready = None, True
    with torch.no_grad():
        torch._foreach_copy_([r.quantizer.scale(r.module) for r in refs], list(scale.float().unbind()))
        if not spec.symmetric:
            torch._foreach_copy_([r.quantizer.zero_point(r.module) for r in refs], list(zero_point.float().unbind()))


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
        for s, reduced_counts in zip(observed, flat.split([c.numel() for c in counts]), strict=True):
            s.counts = reduced_counts.view_as(s.counts)
