"""Mixup and CutMix of training batches."""

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
    """Mixup or CutMix of pairs of training images and of their labels, with timm's implementation.

    Mixup (Zhang et al. 2017, arXiv:1710.09412) interpolates two images; CutMix (Yun et al. 2019, arXiv:1905.04899)
    pastes a box of one into the other. All pairs of a batch are mixed with the same ratio.

    Args:
        mixup_alpha: Parameter of the beta distribution of mixup's ratio; 0 disables mixup.
        cutmix_alpha: Parameter of the beta distribution of the area of CutMix's box; 0 disables CutMix.
        prob: Probability that a batch is mixed.
        switch_prob: Probability of CutMix instead of mixup where both are enabled.

    Raises:
        ValueError: If an alpha is negative or both are 0, or a probability is not in [0, 1].

    >>> import torch
    >>> import lightning_compress as lc
    >>> images, labels = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])
    >>> mixed, targets = lc.Mixup(mixup_alpha=0.4, cutmix_alpha=0.0).mix(images, labels, num_classes=4, seed=[0])
    >>> mixed.shape, targets.shape
    (torch.Size([2, 3, 8, 8]), torch.Size([2, 4]))
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
        """Mix a batch: the first image with the last, the second with the last but one, and so on.

        With an odd batch size the last image is left out and stays unchanged.

        Args:
            images: ``(N, C, H, W)``; not modified.
            labels: Classes ``(N,)``.
            num_classes: Number of classes.
            label_smoothing: Fraction of the target that is spread uniformly over all classes.
            seed: Integers in [0, 2**32) that determine how the batch is mixed.

        Returns:
            Mixed images ``(N, C, H, W)``, and class probabilities ``(N, num_classes)`` in float32.
        """
        mixup = TimmMixup(
            mixup_alpha=self.mixup_alpha,
            cutmix_alpha=self.cutmix_alpha,
            prob=self.prob,
            switch_prob=self.switch_prob,
            label_smoothing=label_smoothing,
            num_classes=num_classes,
        )
        even = len(images) // 2 * 2  # timm requires an even batch size
        mixed, targets = images.clone(), mixup_target(labels, num_classes, smoothing=label_smoothing)
        if even:
            with _numpy_seed(seed):  # timm draws from NumPy's global generator
                # A copy, as timm mixes in place.
                mixed[:even], targets[:even] = mixup(images[:even].clone(), labels[:even])
        return mixed, targets


@contextmanager
def _numpy_seed(seed: Sequence[int]) -> Iterator[None]:
    """Seed NumPy's global generator inside the context, and restore its state afterwards."""
    state = np.random.get_state()
    np.random.seed([*seed])
    try:
        yield
    finally:
        np.random.set_state(state)
