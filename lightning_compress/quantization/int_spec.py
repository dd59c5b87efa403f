"""Specification of a uniform integer quantizer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lightning_compress.quantization.backend import Backend, OnnxRuntime
from lightning_compress.quantization.observers import MinMax, MovingAverage, Observer


@dataclass(frozen=True)
class Int:
    """Uniform quantization to integers of 2 to 8 bits, for weights or for activations.

    Fields that are ``None`` take a default that depends on the tensor. Weights are symmetric, with one scale per output
    channel and a :class:`MinMax` observer. Activations are affine, with one scale per tensor and a
    :class:`MovingAverage` observer.

    Args:
        bits: Bit width, 2 to 8.
        symmetric: Fix the zero point at 0.
        granularity: Values that share a scale: ``"tensor"``, ``"channel"`` (output channel), or an int, the group size
            along the input features of a linear layer. Activations support ``"tensor"`` only.
        observer: Rule that computes the range.

    Raises:
        ValueError: If ``bits`` is not an integer from 2 to 8, or ``granularity`` is not one of the above.

    >>> spec = Int(4).for_weights()
    >>> spec.quant_min, spec.quant_max
    (-7, 7)
    """

    bits: int = 8
    symmetric: bool | None = None
    granularity: Literal["tensor", "channel"] | int | None = None
    observer: Observer | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(f"Int(bits={self.bits!r}) must be an integer from 2 to 8; None keeps layers in FP32.")
        is_group = isinstance(self.granularity, int) and not isinstance(self.granularity, bool) and self.granularity > 1
        if self.granularity not in (None, "tensor", "channel") and not is_group:
            raise ValueError(
                f"Int(granularity={self.granularity!r}) must be 'tensor', 'channel' or a group size above 1."
            )

    @property
    def quant_min(self) -> int:
        """Smallest integer; symmetric ranges leave out the most negative one, so that they are symmetric about 0."""
        return 1 - 2 ** (self.bits - 1) if self.symmetric else 0

    @property
    def quant_max(self) -> int:
        """Largest integer."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def for_weights(self) -> Int:
        """Return a copy with the defaults of weights filled in."""
        return replace(
            self,
            symmetric=self.symmetric is not False,
            granularity=self.granularity or "channel",
            observer=self.observer or MinMax(),
        )

    def for_activations(self, backend: Backend = OnnxRuntime()) -> Int:
        """Return a copy with the defaults of activations filled in.

        Args:
            backend: Arithmetic of the runtime.

        Raises:
            ValueError: If ``granularity`` is not ``"tensor"``, or if the backend does not take affine activations.
        """
        if backend.symmetric and self.symmetric is False:
            raise ValueError(
                f"activations: Int(symmetric=False) has zero points, and {backend.name} takes only 0: leave out "
                "symmetric."
            )
        if self.granularity not in (None, "tensor"):
            raise ValueError(
                f"activations: Int(granularity={self.granularity!r}) is for weights; activations share one scale "
                "per tensor, as integer kernels require."
            )
        return replace(
            self,
            symmetric=self.symmetric is True or backend.symmetric,
            granularity="tensor",
            observer=self.observer or MovingAverage(),
        )
