"""Check that observed ranges are finite, without a wait for the GPU in every step."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

_GPU_INTERVAL = 10  # batches between two checks


class FiniteRanges:
    """Collect observed ranges, and raise an error that names the first quantizer with a range that is not finite.

    On a CPU ranges are checked at once. On a GPU the host would have to wait for all kernels of the batch, so that the
    ranges of some batches are checked together.

    >>> FiniteRanges().add(["net.relu"], [torch.tensor([[0.0, torch.inf]])])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: NaN or infinity observed at 'net.relu': check the inputs, ...
    """

    def __init__(self) -> None:
        self._pending: list[tuple[list[str], Tensor]] = []

    def add(self, names: Sequence[str], ranges: Sequence[Tensor]) -> None:
        """Collect the ranges of one batch, and check them if it is time to.

        Args:
            names: Names of the quantizers.
            ranges: For each quantizer minima and maxima, ``(rows, 2)``.

        Raises:
            ValueError: If NaN or infinity was observed.
        """
        if not ranges:
            return
        rows = [name for name, each in zip(names, ranges, strict=True) for _ in range(len(each))]
        self._pending.append((rows, torch.isfinite(torch.cat(list(ranges))).all(dim=1)))
        if len(self._pending) >= _interval(ranges[0]):
            self.check()

    def check(self) -> None:
        """Check all that was collected since the last check.

        Raises:
            ValueError: If NaN or infinity was observed.
        """
        pending, self._pending = self._pending, []
        if not pending or bool(torch.cat([finite for _, finite in pending]).all()):
            return
        # Searched only after a failure. The first in time: later batches are not finite anywhere.
        marked = chain.from_iterable(zip(rows, finite.tolist(), strict=True) for rows, finite in pending)
        name = next(row for row, is_finite in marked if not is_finite)
        raise ValueError(
            f"NaN or infinity observed at {name!r}: check the inputs, and lower the learning rate if training diverged."
        )


def _interval(ranges: Tensor) -> int:
    return _GPU_INTERVAL if ranges.is_cuda else 1
