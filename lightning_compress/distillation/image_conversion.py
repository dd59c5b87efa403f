"""Conversion of normalized images to another normalization and size."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Channel-wise normalization ``(x - mean) / std`` of images ``x`` in [0, 1].

    Args:
        mean: Mean of each channel.
        std: Standard deviation of each channel, above zero.

    Raises:
        ValueError: If ``mean`` and ``std`` differ in length, or a ``std`` is not above zero.

    >>> import lightning_compress as lc
    >>> lc.Normalization(mean=[0.5], std=[0.25])
    Normalization(mean=(0.5,), std=(0.25,))
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
    """Conversion of images from one normalization to another, and to another size.

    Args:
        have: Normalization of the input; ``None`` if unknown, which leaves the values unchanged.
        want: Normalization of the output; ``None`` for that of the input.
        size: Height and width of the output; ``None`` for those of the input.

    Raises:
        ValueError: If ``have`` and ``want`` differ in the number of channels or, when called, the images have another.

    >>> import torch
    >>> unit, centered = Normalization((0.0,), (1.0,)), Normalization((0.5,), (0.25,))
    >>> Conversion(unit, centered)(torch.full((1, 1, 1, 1), 0.75)).item()
    1.0
    """

    have: Normalization | None
    want: Normalization | None
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.have is not None and self.want is not None and len(self.have.mean) != len(self.want.mean):
            raise ValueError(
                f"The student's images are normalized in {len(self.have.mean)} channels and the teacher's in "
                f"{len(self.want.mean)}: give both a Normalization with the number of channels of the images."
            )

    def __call__(self, images: Tensor) -> Tensor:
        """Convert images.

        Args:
            images: ``(N, C, H, W)``, normalized by ``have``.

        Returns:
            Images ``(N, C, *size)`` of the same dtype, normalized by ``want``.
        """
        have, want = self.have, self.want
        if have is not None and want is not None and have != want:
            if len(have.mean) not in (1, images.shape[1]):
                raise ValueError(
                    f"Images of {images.shape[1]} channels cannot be normalized with {want}: give the "
                    "DistillationModule and the Teacher a Normalization with that number of channels."
                )
            # Both normalizations are affine, so their composition is one multiplication and one addition.
            scale = [a / b for a, b in zip(have.std, want.std, strict=True)]
            shift = [(a - b) / c for a, b, c in zip(have.mean, want.mean, want.std, strict=True)]
            images = images * images.new_tensor(scale)[:, None, None] + images.new_tensor(shift)[:, None, None]
        if self.size is not None and images.shape[2:] != self.size:
            # Antialiased bicubic interpolation has no 16-bit kernel on the CPU.
            wide = images.float() if images.element_size() < 4 else images
            resized = F.interpolate(wide, self.size, mode="bicubic", align_corners=False, antialias=True)
            images = resized.to(images.dtype)
        return images
