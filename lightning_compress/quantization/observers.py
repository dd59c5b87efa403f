"""Observers: rules that compute the quantization range of a tensor from its statistics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_compress.functional import histograms, range_search


@dataclass
class RangeStatistics:
    """Statistics of one or more batches of a tensor, one row per scale.

    Attributes:
        min_max: ``(rows, 2)``, the maxima of ``-x`` and of ``x``: one max reduction merges batches or ranks.
        counts: ``(rows, bins)``, a histogram over ``[-2**k, 2**k)`` with the smallest ``k`` that covers ``min_max`` in
            all rows, or ``(rows, 0)`` if the observer needs no histogram. Counts are summed over batches and ranks.
    """

    min_max: Tensor
    counts: Tensor

    def merge(self, other: RangeStatistics) -> RangeStatistics:
        """Return the statistics of both sets of batches together."""
        min_max = torch.maximum(self.min_max, other.min_max)
        # Histograms over different powers of two are added after the narrower one is rebinned to the common range.
        counts = [histograms.rebin(part.counts, part.min_max, min_max) for part in (self, other)]
        return RangeStatistics(min_max, counts[0] + counts[1])


class Observer(ABC):
    """Base class of the rules that compute a range from statistics.

    Observers are stateless: the :class:`~lightning_compress.quantization.quantizer.Quantizer` holds the statistics.

    Attributes:
        bins: Number of histogram bins that the rule needs; 0 for none.
        updates_per_batch: True if statistics must be accumulated batch by batch, because the result depends on their
            division into batches.
    """

    bins: ClassVar[int] = 0
    updates_per_batch: ClassVar[bool] = False

    def observe(self, rows: Tensor) -> RangeStatistics:
        """Compute the statistics of a tensor ``(rows, values)``."""
        lowest, highest = torch.aminmax(rows, dim=1)
        min_max = torch.stack([-lowest, highest], dim=1)
        if not self.bins:
            return RangeStatistics(min_max, min_max.new_empty(len(rows), 0))
        return RangeStatistics(min_max, histograms.histogram(rows, min_max, self.bins))

    def accumulate(self, previous: RangeStatistics | None, new: RangeStatistics) -> RangeStatistics:
        """Return the statistics after one more batch; ``new`` is already reduced over ranks."""
        return new if previous is None else previous.merge(new)

    @abstractmethod
    def compute_range(self, statistics: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Compute the lower and upper end of the range, ``(rows,)`` each.

        Args:
            statistics: Statistics of the tensor.
            num_levels: Number of integers in the quantized range.
            symmetric: The range will be made symmetric about 0.
        """


class _MinMaxRange(Observer):
    def compute_range(self, statistics: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Return the minimum and the maximum."""
        return -statistics.min_max[:, 0], statistics.min_max[:, 1]


@dataclass(frozen=True)
class MinMax(_MinMaxRange):
    """Range from the minimum to the maximum: over all batches for activations, of the current values for weights.

    >>> observer = MinMax()
    >>> statistics = observer.observe(torch.tensor([[-1.0, 0.5, 3.0]]))
    >>> observer.compute_range(statistics, num_levels=256, symmetric=False)
    (tensor([-1.]), tensor([3.]))
    """


@dataclass(frozen=True)
class MovingAverage(_MinMaxRange):
    """Exponential moving average of the minimum and the maximum of each batch. Jacob et al. 2018 (arXiv:1712.05877).

    Args:
        momentum: Weight of the new batch, in (0, 1].

    Raises:
        ValueError: If ``momentum`` is outside (0, 1].

    >>> observer = MovingAverage(momentum=0.5)
    >>> first, second = (observer.observe(torch.tensor([[-x, x]])) for x in (1.0, 2.0))
    >>> observer.compute_range(observer.accumulate(first, second), num_levels=256, symmetric=False)
    (tensor([-1.5000]), tensor([1.5000]))
    """

    updates_per_batch: ClassVar[bool] = True
    momentum: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.momentum <= 1:
            raise ValueError(f"MovingAverage(momentum={self.momentum}) must lie in (0, 1].")

    def accumulate(self, previous: RangeStatistics | None, new: RangeStatistics) -> RangeStatistics:
        """Move the statistics towards the new batch."""
        if previous is None:
            return new
        return RangeStatistics(previous.min_max.lerp(new.min_max.to(previous.min_max.dtype), self.momentum), new.counts)


@dataclass(frozen=True)
class Percentile(Observer):
    """Range between two percentiles; values outside are clipped.

    Args:
        percentile: Upper percentile, in (50, 100]; the lower one is ``100 - percentile``.

    Raises:
        ValueError: If ``percentile`` is outside (50, 100].

    >>> observer = Percentile(90.0)
    >>> statistics = observer.observe(torch.linspace(-1, 1, 1001).unsqueeze(0))
    >>> low, high = observer.compute_range(statistics, num_levels=256, symmetric=False)
    >>> round(low.item(), 2), round(high.item(), 2)
    (-0.8, 0.8)
    """

    bins: ClassVar[int] = 4096
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"Percentile(percentile={self.percentile}) must lie in (50, 100].")

    def compute_range(self, statistics: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Return the percentiles of the histogram."""
        return histograms.percentiles(statistics.counts, statistics.min_max, self.percentile / 100)


@dataclass(frozen=True)
class MSE(Observer):
    """Range with the smallest mean squared error of rounding and clipping.

    Choukroun et al. 2019 (arXiv:1902.06822), searched on a histogram.

    >>> observer = MSE()
    >>> statistics = observer.observe(torch.tensor([[0.0, 1.0] * 500 + [1.5]]))
    >>> low, high = observer.compute_range(statistics, num_levels=2, symmetric=False)
    >>> round(low.item(), 2), round(high.item(), 1)  # the single outlier is clipped
    (0.0, 1.0)
    """

    bins: ClassVar[int] = 4096

    def compute_range(self, statistics: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Return the clipped range with the smallest squared error."""
        return range_search.best_range(
            statistics.counts,
            statistics.min_max,
            num_levels=num_levels,
            symmetric=symmetric,
            loss=range_search.squared_error,
        )


_VALUES_PER_LEVEL = 8


@dataclass(frozen=True)
class Histogram(Observer):
    """Range with the smallest Kullback-Leibler divergence between the values and their quantized distribution.

    Entropy calibration, Migacz 2017 ("8-bit Inference with TensorRT"). The divergence of a handful of values says
    nothing about their distribution: with fewer than 8 values per level the range is that of :class:`MinMax`.

    >>> observer = Histogram()
    >>> statistics = observer.observe(torch.tensor([[-1.0, 0.0, 1.0, 2.0]]))
    >>> low, high = observer.compute_range(statistics, num_levels=256, symmetric=False)
    >>> bool(low < 0 < high <= 2)
    True
    """

    bins: ClassVar[int] = 4096

    def compute_range(self, statistics: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Return the clipped range with the smallest divergence."""
        lower, upper = range_search.best_range(
            statistics.counts,
            statistics.min_max,
            num_levels=num_levels,
            symmetric=symmetric,
            loss=range_search.divergence,
        )
        is_sparse = statistics.counts.sum(dim=1) < _VALUES_PER_LEVEL * num_levels
        least, largest = MinMax().compute_range(statistics, num_levels=num_levels, symmetric=symmetric)
        return torch.where(is_sparse, least.to(lower), lower), torch.where(is_sparse, largest.to(upper), upper)


@dataclass(frozen=True)
class Learned(Observer):
    """Scale, and zero point of affine quantizers, as parameters that the optimizer trains.

    LSQ, Esser et al. 2020 (arXiv:1902.08153); with a trained zero point LSQ+, Bhalgat et al. 2020 (arXiv:2004.09576).
    The initial value minimizes the mean squared error on the last batch before fake quantization starts; in calibrate,
    activations use all batches.

    >>> from lightning_compress import Int, calibrate
    >>> model = calibrate(torch.nn.Linear(2, 1), [torch.ones(4, 2)], weights=Int(4, observer=Learned()))
    >>> [name for name, _ in model.named_parameters()]
    ['weight', 'bias', 'quant_weight_scale']
    """

    bins: ClassVar[int] = 4096

    def accumulate(self, previous: RangeStatistics | None, new: RangeStatistics) -> RangeStatistics:
        """Return the new batch alone: earlier statistics are of weights that training has changed since."""
        return new

    def compute_range(self, statistics: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Return the initial range."""
        return MSE().compute_range(statistics, num_levels=num_levels, symmetric=symmetric)
