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
        object.__setattr__(self, "mean", tuple(map(float, self.mean)))
        object.__setattr__(self, "std", tuple(map(float, self.std)))
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean={self.mean} and std={self.std} must have one number for each channel.")
        if not min(self.std, default=0) > 0:
            raise ValueError(f"std={self.std} must be above zero in every channel.")


@dataclass(frozen=True)
class Conversion:
    """From one normalization to another, and to another size.

    Args:
        have: How the images are normalised; ``None`` if nobody knows, and then they stay so.
        want: How they should be; ``None`` if it does not matter.
        size: Height and width that they should have; ``None`` leaves them as they are.

    Raises:
        ValueError: If the two are of different numbers of channels, or, when called, the images are of another.

    >>> import torch
    >>> plain, centred = Normalization((0.0,), (1.0,)), Normalization((0.5,), (0.25,))
    >>> Conversion(plain, centred)(torch.full((1, 1, 1, 1), 0.75)).item()
    1.0
    """

    have: Normalization | None
    want: Normalization | None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.have is not None and self.want is not None and len(self.have.mean) != len(self.want.mean):
            raise ValueError(
                f"The student's images are normalised in {len(self.have.mean)} channels and the teacher's in "
                f"{len(self.want.mean)}: give both a Normalization of the channels that images have."
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Maps images ``(N, C, H, W)`` to images ``(N, C, *size)``."""
        have, want = self.have, self.want
        if have is not None and want is not None and have != want:
            if len(have.mean) not in (1, images.shape[1]):
                raise ValueError(
                    f"Images of {images.shape[1]} channels cannot be normalised as {want}: give the DistillationModule "
                    "and the Teacher a Normalization of as many."
                )
            scale = [a / b for a, b in zip(have.std, want.std, strict=True)]
            shift = [(a - b) / c for a, b, c in zip(have.mean, want.mean, want.std, strict=True)]
            images = images * images.new_tensor(scale)[:, None, None] + images.new_tensor(shift)[:, None, None]
        if self.size is not None and images.shape[2:] != self.size:
            wide = images.float() if images.element_size() < 4 else images  # on CPUs nothing narrower is resized
            resized = F.interpolate(wide, self.size, mode="bicubic", align_corners=False, antialias=True)
            images = resized.to(images.dtype)
        return images
