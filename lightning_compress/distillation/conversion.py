"""Images as another network wants them."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """How images are normalised: ``(x - mean) / std``, for ``x`` in [0, 1].

    Args:
        mean: One number per channel.
        std: One number per channel, above zero.

    Raises:
        ValueError: If the two have not the same length, or a ``std`` is not above zero.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean={self.mean} and std={self.std} must have one number for each channel.")
        if min(self.std, default=0) <= 0:
            raise ValueError(f"std={self.std} must be above zero in every channel.")


@dataclass(frozen=True)
class Conversion:
    """From one normalization to another, and to another size.

    Args:
        have: How the images are normalised; ``None`` if nobody knows, and then they stay so.
        want: How they should be; ``None`` if it does not matter.
        size: Height and width that they should have; ``None`` leaves them as they are.

    >>> import torch
    >>> plain, centred = Normalization((0.0,), (1.0,)), Normalization((0.5,), (0.25,))
    >>> Conversion(plain, centred)(torch.full((1, 1, 1, 1), 0.75)).item()
    1.0
    """

    have: Normalization | None
    want: Normalization | None
    size: tuple[int, int] | None = None

    def __call__(self, images: Tensor) -> Tensor:
        """Maps images ``(N, C, H, W)`` to images ``(N, C, *size)``."""
        have, want = self.have, self.want
        if have is not None and want is not None and have != want:
            scale = [a / b for a, b in zip(have.std, want.std, strict=True)]
            shift = [(a - b) / c for a, b, c in zip(have.mean, want.mean, want.std, strict=True)]
            images = images * images.new_tensor(scale)[:, None, None] + images.new_tensor(shift)[:, None, None]
        if self.size is not None and images.shape[2:] != self.size:
            images = F.interpolate(images, self.size, mode="bicubic", align_corners=False, antialias=True)
        return images
