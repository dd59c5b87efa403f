"""Where the range of a tensor's integers comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_compress.functional import histograms, range_search


@dataclass
class Seen:
    """What one look at a tensor, or many, has shown; one row for each scale.

    Attributes:
        extremes: ``(rows, 2)``, the largest value of ``-x`` and of ``x``: the maximum over looks, or ranks, of both.
        counts: ``(rows, bins)`` of a histogram over ``[-2**k, 2**k)`` with the smallest ``k`` that holds the extremes
            of all rows; no bins where the observer needs none. Counts add up over looks and ranks.
    """

    extremes: Tensor
    counts: Tensor

    def merged(self, other: Seen) -> Seen:
        """What both have shown together."""
        extremes = torch.maximum(self.extremes, other.extremes)
        counts = [histograms.widened(seen.counts, seen.extremes, extremes) for seen in (self, other)]
        return Seen(extremes, counts[0] + counts[1])


class Observer(ABC):
    """A rule that turns what was seen of a tensor into its range.

    Attributes:
        bins: Of the histogram that it needs.
        counts_batches: Whether two batches show it something else one after the other than together.
    """

    bins: ClassVar[int] = 0
    counts_batches: ClassVar[bool] = False

    def look(self, rows: Tensor) -> Seen:
        """What a tensor ``(rows, values)`` shows."""
        lowest, highest = torch.aminmax(rows, dim=1)
        extremes = torch.stack([-lowest, highest], dim=1)
        if not self.bins:
            return Seen(extremes, extremes.new_empty(len(rows), 0))
        return Seen(extremes, histograms.histogram(rows, extremes, self.bins))

    def updated(self, before: Seen | None, new: Seen) -> Seen:
        """What is known after another batch; ``new`` has been reduced over ranks."""
        return new if before is None else before.merged(new)

    @abstractmethod
    def span(self, seen: Seen, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the range, ``(rows,)`` each.

        Args:
            seen: What is known.
            num_levels: Number of integers that there are.
            symmetric: Whether the range will be made symmetric.
        """


class _Extremes(Observer):
    def span(self, seen: Seen, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The extremes."""
        return -seen.extremes[:, 0], seen.extremes[:, 1]


@dataclass(frozen=True)
class MinMax(_Extremes):
    """The smallest and largest value seen so far; of weights, that of now."""


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

    def updated(self, before: Seen | None, new: Seen) -> Seen:
        """Moves towards the new batch."""
        if before is None:
            return new
        return Seen(before.extremes.lerp(new.extremes.to(before.extremes.dtype), self.momentum), new.counts)


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

    def span(self, seen: Seen, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The percentiles of the histogram."""
        return histograms.percentiles(seen.counts, seen.extremes, self.percentile / 100)


@dataclass(frozen=True)
class MSE(Observer):
    """The range with the smallest mean squared error of rounding and clipping. Choukroun et al. 2019."""

    bins: ClassVar[int] = 4096

    def span(self, seen: Seen, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The best of many clipped ranges."""
        return range_search.best_span(
            seen.counts, seen.extremes, num_levels=num_levels, symmetric=symmetric, loss=range_search.squared_error
        )


@dataclass(frozen=True)
class Histogram(Observer):
    """The range whose integers have the distribution closest in entropy (Kullback-Leibler). Migacz 2017."""

    bins: ClassVar[int] = 4096

    def span(self, seen: Seen, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The best of many clipped ranges."""
        return range_search.best_span(
            seen.counts, seen.extremes, num_levels=num_levels, symmetric=symmetric, loss=range_search.divergence
        )


@dataclass(frozen=True)
class Learned(Observer):
    """Scale, and zero point where there is one, are parameters that the optimizer trains.

    LSQ, Esser et al. 2020 (arXiv:1902.08153), with an offset LSQ+, Bhalgat et al. 2020 (arXiv:2004.09576). Where
    training starts is a mean squared error's choice for activations and weights alike, of the last batch before.
    """

    bins: ClassVar[int] = 4096

    def updated(self, before: Seen | None, new: Seen) -> Seen:
        """The new batch alone: a network that trains outgrows what it has shown."""
        return new

    def span(self, seen: Seen, *, num_levels: int, symmetric: bool) -> tuple[Tensor, Tensor]:
        """Where training starts."""
        return MSE().span(seen, num_levels=num_levels, symmetric=symmetric)
