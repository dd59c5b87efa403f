"""Search of the steps of quantized weights with which a packed file has a given size."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lightning_compress.clustering.rate_distortion import WeightedErrors, quantize_weight
from lightning_compress.packing.symbol_costs import MAX_INTEGER
from lightning_compress.packing.writer import save_packed

_RATE = 0.05
_TOLERANCE = 0.01  # of the size; smaller files are accepted, larger ones are not
_MAX_STEPS = 24
_NEARLY_LINEAR = 4.0  # ratio of sizes between which the logarithm of the size is nearly linear in that of the step


@dataclass(frozen=True, eq=False)
class QuantizedWeight:
    """A weight on a uniform grid.

    Attributes:
        integers: Multiples of the step, float64 of the shape of the weight, on the CPU.
        step: Distance of the values.
    """

    integers: Tensor
    step: float

    @property
    def values(self) -> Tensor:
        """The weight, float32."""
        return self.integers.float() * self.step


class StepSearch:
    """Search of one scale, from which the steps of all weights follow: the same loss by a step in each.

    Args:
        weights: The weights.
        errors: Errors of the outputs by errors of each weight.
        zeros: Bool of the shape of each weight, True where it stays zero; ``None`` if it may take any value.
        size_of: Returns the size of the file, in bytes, with quantized weights.
    """

    def __init__(
        self,
        weights: Sequence[Tensor],
        errors: Sequence[WeightedErrors],
        zeros: Sequence[Tensor | None],
        size_of: Callable[[Sequence[QuantizedWeight]], int],
    ) -> None:
        self._weights, self._errors, self._zeros, self._size_of = weights, errors, zeros, size_of

    def run(self, num_bytes: int) -> list[QuantizedWeight]:
        """Return the quantized weights with which the file is at most as large as given, and hardly smaller.

        Raises:
            ValueError: If the file is larger with every weight zero.
        """
        lower, upper = self._bounds()
        best = self._quantize(upper)
        smallest = smaller = self._size_of(best)
        larger = math.inf
        if smallest > num_bytes:
            raise ValueError(
                f"The file takes {smallest} bytes with every selected weight at zero, and {num_bytes} are allowed: "
                "allow more, select more layers, or round other tensors with half=('norms',)."
            )
        for _ in range(_MAX_STEPS):
            middle = (lower + upper) / 2
            if larger < _NEARLY_LINEAR * smaller:
                share = math.log(larger / ((1 - _TOLERANCE / 2) * num_bytes)) / math.log(larger / smaller)
                middle = lower + (upper - lower) * min(max(share, 0.05), 0.95)
            quantized = self._quantize(middle)
            found = self._size_of(quantized)
            if found > num_bytes:
                lower, larger = middle, found
                continue
            best, upper, smaller = quantized, middle, found
            if found >= (1 - _TOLERANCE) * num_bytes:
                break
        return best

    def _bounds(self) -> tuple[float, float]:
        scales = [
            math.log(float(weight.abs().max().clamp_min(1e-30)) * math.sqrt(max(error.sensitivity, 1e-60)))
            for weight, error in zip(self._weights, self._errors, strict=True)
        ]
        return min(scales) - math.log(MAX_INTEGER), max(scales) + math.log(64)

    def _quantize(self, log_scale: float) -> list[QuantizedWeight]:
        quantized = []
        for weight, error, zeros in zip(self._weights, self._errors, self._zeros, strict=True):
            largest = float(weight.abs().max())
            # The same loss by a step in each layer, within the range of the integers.
            wanted = math.exp(log_scale) / math.sqrt(max(error.sensitivity, 1e-60))
            step = float(np.float32(max(wanted, largest / MAX_INTEGER, 1e-30)))
            integers = quantize_weight(weight, error, step=step, rate=_RATE)
            if zeros is not None:
                integers = integers.masked_fill(zeros.cpu(), 0.0)
            quantized.append(QuantizedWeight(integers, step))
        return quantized


def packed_size(state: Mapping[str, Tensor], half: Sequence[str]) -> int:
    """Return the size in bytes of the packed file of a state dict."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        return save_packed(state, Path(folder, "file"), half=half).num_bytes
