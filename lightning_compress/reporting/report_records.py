"""The records that a report of a run consists of, as plain data."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Timing:
    """Latency of one forward pass.

    Attributes:
        median: Median in seconds.
        p95: 95th percentile in seconds.
        num_calls: Number of timed calls.
        batch_size: Number of samples in a call.
        num_threads: Number of threads.
        runtime: Runtime that executed the model.
        joules: Energy of one call, or ``None`` where it is not measurable.
    """

    median: float
    p95: float
    num_calls: int
    batch_size: int
    num_threads: int
    runtime: str
    joules: float | None = None


@dataclass(frozen=True)
class ModelResult:
    """Measurements of one model or file.

    Attributes:
        role: ``"teacher"``, ``"previous"`` (an earlier stage), ``"baseline"``, ``"fitted"`` (with masks, clusters and
            fake quantization), ``"channels removed"``, ``"packed"``, or ``"export"``.
        title: Name in tables.
        metrics: Test metrics.
        intervals: 95 % confidence interval of those metrics that are a fraction of the test samples.
        num_samples: Number of test samples, or ``None`` if it is not known.
        num_parameters: Number of parameters, or ``None`` for a file.
        macs: Multiply-accumulates of one sample, or ``None`` if they were not counted.
        num_bytes: Size of the file, or of the dense tensors of a model that has none.
        file: Name of the file in the directory of the run, or an empty string.
        sha256: SHA-256 of the file, or an empty string.
        timing: Latency, or ``None`` if it was not measured.
    """

    role: str
    title: str
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    num_samples: int | None = None
    num_parameters: int | None = None
    macs: int | None = None
    num_bytes: int | None = None
    file: str = ""
    sha256: str = ""
    timing: Timing | None = None


@dataclass(frozen=True)
class LayerResult:
    """Compression of one weight tensor, counted on the finalized network.

    Attributes:
        name: Name in the state dict of the deployed module.
        shape: Shape of the tensor.
        num_weights: Number of elements.
        num_zeros: Number of elements that are exactly zero.
        num_values: Number of distinct values.
        bits: Bits per quantized weight, or ``None`` for FP32.
        num_bytes: Bytes in the packed file, or ``None`` if none was written.
    """

    name: str
    shape: tuple[int, ...]
    num_weights: int
    num_zeros: int
    num_values: int
    bits: int | None = None
    num_bytes: int | None = None

    @property
    def sparsity(self) -> float:
        """Fraction of zeros, in [0, 1]."""
        return self.num_zeros / self.num_weights if self.num_weights else 0.0


@dataclass(frozen=True)
class SizeStage:
    """Size of the network after one stage of compression.

    Attributes:
        name: The stage.
        num_bytes: Size in bytes.
    """

    name: str
    num_bytes: int


@dataclass(frozen=True)
class WeightHistogram:
    """Histogram of the weights of a layer before and after compression.

    Attributes:
        name: Name of the weight.
        lower: Lower edge of the first bin.
        upper: Upper edge of the last bin; all bins have the same width.
        before: Counts of the dense baseline, or of the weights at the start of the fit without one.
        after: Counts of the compressed weights, zeros left out.
        num_zeros: Number of zeros, which are not in ``after``.
    """

    name: str
    lower: float
    upper: float
    before: tuple[int, ...]
    after: tuple[int, ...]
    num_zeros: int


@dataclass(frozen=True)
class LayerSensitivity:
    """Delta loss with one layer of the network compressed, and all else as it is.

    Attributes:
        layer: Name of the layer.
        delta_losses: Label of the level, such as ``"4 bits"`` or ``"90 %"``, to the delta loss.
    """

    layer: str
    delta_losses: dict[str, float]


@dataclass(frozen=True)
class SensitivityMap:
    """Sensitivity of all layers to one technique.

    Attributes:
        technique: ``"quantization"`` or ``"pruning"``.
        loss: Loss of the network as it is.
        layers: The layers, in the order of the network.
        config: Configuration of the measurement, if a command made it.
    """

    technique: str
    loss: float
    layers: tuple[LayerSensitivity, ...]
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
