"""Where the range of a tensor's integers comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_compress.functional import histograms, range_search


@dataclass
class RangeStatistics:
    """What one look at a tensor, or many, has shown; one row for each scale.

    Attributes:
        min_max: ``(rows, 2)``, the largest value of ``-x`` and of ``x``: the maximum over looks, or ranks, of both.
        counts: ``(rows, bins)`` of a histogram over ``[-2**k, 2**k)`` with the smallest ``k`` that holds the min_max
            of all rows; no bins where the observer needs none. Counts add up over looks and ranks.
    """

    min_max: Tensor
    counts: Tensor

    def merged(self, other: RangeStatistics) -> RangeStatistics:
        """What both have shown together."""
        min_max = torch.maximum(self.min_max, other.min_max)
        counts = [histograms.rebin(observed.counts, observed.min_max, min_max) for observed in (self, other)]
        return RangeStatistics(min_max, counts[0] + counts[1])


class Observer(ABC):
    """A rule that turns what was observed of a tensor into its range.

    Attributes:
        bins: Of the histogram that it needs.
        counts_batches: Whether two batches show it something else one after the other than together.
    """

    bins: ClassVar[int] = 0
    counts_batches: ClassVar[bool] = False

    def observe(self, rows: Tensor) -> RangeStatistics:
        """What a tensor ``(rows, values)`` shows."""
        lowest, highest = torch.aminmax(rows, dim=1)
        min_max = torch.stack([-lowest, highest], dim=1)
        if not self.bins:
            return RangeStatistics(min_max, min_max.new_empty(len(rows), 0))
        return RangeStatistics(min_max, histograms.histogram(rows, min_max, self.bins))

    def updated(self, before: RangeStatistics | None, new: RangeStatistics) -> RangeStatistics:
        """What is statistics after another batch; ``new`` has been reduced over ranks."""
        return new if before is None else before.merged(new)

    @abstractmethod
    def compute_range(self, observed: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the range, ``(rows,)`` each.

        Args:
            observed: What is statistics.
            num_levels: Number of integers that there are.
            symmetric: Whether the range will be made symmetric.
        """


class _Extremes(Observer):
    def compute_range(self, observed: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The min_max."""
        return -observed.min_max[:, 0], observed.min_max[:, 1]


@dataclass(frozen=True)
class MinMax(_Extremes):
    """The smallest and largest value observed so far; of weights, that of now."""


@dataclass(frozen=True)
class MovingAverage(_Extremes):
    """An exponential moving average of each batch's smallest and largest value. Jacob et al. 2018 (arXiv:1712.05877).

    Args:
        momentum: Weight of the new batch, in (0, 1].

    Raises:
        ValueError: For any other momentum.
    """

    counts_batches: ClassVar[bool] = True
    momentum: float = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.momentum <= 1:
            raise ValueError(f"MovingAverage(momentum={self.momentum}) must lie in (0, 1].")

    def updated(self, before: RangeStatistics | None, new: RangeStatistics) -> RangeStatistics:
        """Moves towards the new batch."""
        if before is None:
            return new
        return RangeStatistics(before.min_max.lerp(new.min_max.to(before.min_max.dtype), self.momentum), new.counts)


@dataclass(frozen=True)
class Percentile(Observer):
    """Leaves out the outermost values on either side.

    Args:
        percentile: Percentage of the values that is kept, in (50, 100].

    Raises:
        ValueError: For any other percentage.
    """

    bins: ClassVar[int] = 4096
    percentile: float = 99.99

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise ValueError(f"Percentile(percentile={self.percentile}) must lie in (50, 100].")

    def compute_range(self, observed: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The percentiles of the histogram."""
        return histograms.percentiles(observed.counts, observed.min_max, self.percentile / 100)


@dataclass(frozen=True)
class MSE(Observer):
    """The range with the smallest mean squared error of rounding and clipping. Choukroun et al. 2019."""

    bins: ClassVar[int] = 4096

    def compute_range(self, observed: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The best of many clipped ranges."""
        return range_search.best_range(
            observed.counts,
            observed.min_max,
            num_levels=num_levels,
            symmetric=symmetric,
            loss=range_search.squared_error,
        )


@dataclass(frozen=True)
class Histogram(Observer):
    """The range whose integers have the distribution closest in entropy (Kullback-Leibler). Migacz 2017."""

    bins: ClassVar[int] = 4096

    def compute_range(self, observed: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The best of many clipped ranges."""
        return range_search.best_range(
            observed.counts, observed.min_max, num_levels=num_levels, symmetric=symmetric, loss=range_search.divergence
        )


@dataclass(frozen=True)
class Learned(Observer):
    """Scale, and zero point where there is one, are parameters that the optimizer trains.

    LSQ, Esser et al. 2020 (arXiv:1902.08153), with an offset LSQ+, Bhalgat et al. 2020 (arXiv:2004.09576). Where
    training starts is a mean squared error's choice for activations and weights alike, of the last batch before.
    """

    bins: ClassVar[int] = 4096

    def updated(self, before: RangeStatistics | None, new: RangeStatistics) -> RangeStatistics:
        """The new batch alone: a network that trains outgrows what it has shown."""
        return new

    def compute_range(self, observed: RangeStatistics, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Where training starts."""
        return MSE().compute_range(observed, num_levels=num_levels, symmetric=symmetric)
