"""Which integers stand for a tensor."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from lightning_compress.quantization.observers import MinMax, MovingAverage, Observer


@dataclass(frozen=True)
class Int:
    """Integers of 2 to 8 bits for the weights or the activations of a layer.

    What is ``None`` is what is usual: weights are symmetric, per output channel and span what they are; activations
    are affine, per tensor and span a moving average.

    Args:
        bits: Number of bits, 2 to 8.
        symmetric: Whether 0.0 is the integer 0 in the middle of the range.
        granularity: What shares a scale: ``"tensor"``, ``"channel"`` (output channel), or an int, so many consecutive
            weights of a linear layer's input. Activations are per tensor.
        observer: Where the range comes from.

    Raises:
        ValueError: For other numbers of bits and other granularities.

    >>> Int(4).bits
    4
    """

    bits: int = 8
    symmetric: bool | None = None
    granularity: Literal["tensor", "channel"] | int | None = None
    observer: Observer | None = None

    def __post_init__(self) -> None:
        if isinstance(self.bits, bool) or not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise ValueError(
                f"Int(bits={self.bits!r}) must be a whole number from 2 to 8; None leaves layers in float."
            )
        is_group = isinstance(self.granularity, int) and not isinstance(self.granularity, bool) and self.granularity > 1
        if self.granularity not in (None, "tensor", "channel") and not is_group:
            raise ValueError(
                f"Int(granularity={self.granularity!r}) must be 'tensor', 'channel' or a group size above 1."
            )

    @property
    def quant_min(self) -> int:
        """The smallest integer: symmetric ranges leave out the most negative one."""
        return 1 - 2 ** (self.bits - 1) if self.symmetric else 0

    @property
    def quant_max(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    def for_weights(self) -> Int:
        """With what is usual for weights filled in."""
        return replace(
            self,
            symmetric=self.symmetric is not False,
            granularity=self.granularity or "channel",
            observer=self.observer or MinMax(),
        )

    def for_activations(self) -> Int:
        """With what is usual for activations filled in.

        Raises:
            ValueError: For any granularity but ``"tensor"``.
        """
        if self.granularity not in (None, "tensor"):
            raise ValueError(
                f"activations: Int(granularity={self.granularity!r}) is for weights; activations share one scale "
                "per tensor, as integer kernels want it."
            )
        return replace(
            self,
            symmetric=self.symmetric is True,
            granularity="tensor",
            observer=self.observer or MovingAverage(),
        )
