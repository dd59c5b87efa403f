"""Measurements that every export target reports."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """An exported file and its measurements.

    Attributes:
        path: The file.
        num_bytes: Size of the file.
        latency_quartiles: Lower quartile, median and upper quartile of the seconds of a run on the example inputs in
            the target's runtime, one thread of this CPU; ``None`` if it does not run on this machine.
        steps: Largest difference of each quantized activation from the model's on identical inputs, in LSB; ``None``
            for an FP32 file, or if it does not run here.
        difference: Largest difference of the outputs from the model's, relative to their largest absolute value;
            ``None`` if the file does not run here.
        unquantized_ops: Calls that compute in FP32, ``"<module>.<function>"``.
    """

    path: Path
    num_bytes: int
    latency_quartiles: tuple[float, float, float] | None
    steps: dict[str, int] | None
    difference: float | None
    unquantized_ops: tuple[str, ...]

    @property
    def latency(self) -> float | None:
        """Median seconds of a run; ``None`` if the file does not run here."""
        return None if self.latency_quartiles is None else self.latency_quartiles[1]

    @property
    def left_in_float(self) -> tuple[str, ...]:
        """Old name of ``unquantized_ops``, until version 0.2."""
        return self.unquantized_ops
