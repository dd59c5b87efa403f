"""Mixup and CutMix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from timm.data.mixup import Mixup as TimmMixup
from timm.data.mixup import mixup_target
from torch import Tensor


@dataclass(frozen=True)
class Mixup:
    """Mixes each training image with another one and their labels alike, as timm does, the same way in a whole batch.

    Mixup (Zhang et al. 2017, arXiv:1710.09412) blends the two; CutMix (Yun et al. 2019, arXiv:1905.04899) puts a box of
    one into the other.

    Args:
        mixup_alpha: Of the beta distribution that mixup's weight is drawn from; 0: no mixup.
        cutmix_alpha: Of the one that the area of CutMix's box is drawn from; 0: no CutMix.
        prob: Probability that a batch is mixed.
        switch_prob: Probability that it is CutMix where both are used.

    Raises:
        ValueError: If an alpha is negative or both are 0, or if a probability does not lie in [0, 1].
    """

    mixup_alpha: float = 0.2
    cutmix_alpha: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5

    def __post_init__(self) -> None:
        if min(self.mixup_alpha, self.cutmix_alpha) < 0 or self.mixup_alpha == self.cutmix_alpha == 0:
            raise ValueError(
                f"Mixup(mixup_alpha={self.mixup_alpha}, cutmix_alpha={self.cutmix_alpha}) must not be negative, "
                "and at least one must be more than 0."
            )
        for name in ("prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"Mixup({name}={getattr(self, name)}) must lie in [0, 1].")

    def mix(
        self,
        images: Tensor,
        labels: Tensor,
        num_classes: int,
        *,
        label_smoothing: float = 0.0,
        seed: Sequence[int],
    ) -> tuple[Tensor, Tensor]:
        """Mixes a batch, the first image with the last and so on; of an odd number, the last image stays as it is.

        Args:
            images: ``(N, C, H, W)``, left as they are.
            labels: ``(N,)`` of classes.
            num_classes: Number of classes.
            label_smoothing: Part of the target that is spread over all classes.
            seed: Numbers of 0 to 2**32 - 1 that alone decide how the batch is mixed.

        Returns:
            Images ``(N, C, H, W)``, and targets ``(N, num_classes)`` of float32 with rows that add up to 1.
        """
        mixup = TimmMixup(
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            prob=self.prob,
            switch_prob=self.switch_prob,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )
        even = len(images) // 2 * 2
        mixed, targets = images.clone(), mixup_target(labels, num_classes, smoothing=label_smoothing)
        if even:
            with _numpy_seed(seed):  # which timm draws from
                mixed[:even], targets[:even] = mixup(images[:even].clone(), labels[:even])
        return mixed, targets


@contextmanager
def _numpy_seed(seed: Sequence[int]) -> Iterator[None]:
    """Seeds numpy's global generator, and leaves it as it was before."""
    state = np.random.get_state()
    np.random.seed([*seed])
    try:
        yield
    finally:
        np.random.set_state(state)
