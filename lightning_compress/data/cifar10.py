"""The CIFAR-10 data module."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, ImageFolder

from lightning_compress.data.decoded_images import decode_images
from lightning_compress.data.images import Batch, InMemoryDataModule, random_crop_and_flip


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10 from image folders or from torchvision's files, as normalized ``(3, 32, 32)`` float32 images.

    Folders are decoded once, with a progress bar; the result is cached in ``~/.cache/lightning-compress``.

    Args:
        root: Directory that contains ``train/<class>/*`` and ``test/<class>/*``, directly or in ``cifar10/``, or
            torchvision's ``cifar-10-batches-py``.
        batch_size: Number of images per batch.
        num_workers: Number of worker processes per loader; the work per batch is small, so 0 is usually fastest.
        download: Download CIFAR-10 to ``root`` with torchvision if it is missing.
        val_size: Number of training images held out for validation, balanced over the classes. With 0, all 50,000
            images are used for training and there is no validation; the test images are never used for either.
        augment: Apply random crops and horizontal flips to the training images.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, on the same scale as ``mean``.
        seed: Seed of the validation split.

    Raises:
        ValueError: In ``setup``, if ``root`` does not contain CIFAR-10.
    """

    augmentation = staticmethod(random_crop_and_flip)

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        num_workers: int = 0,
        *,
        download: bool = False,
        val_size: int = 5000,
        augment: bool = True,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        seed: int = 0,
    ) -> None:
        super().__init__(
            root, batch_size, num_workers, download=download, val_size=val_size, augment=augment, mean=mean, std=std,
            seed=seed,
        )  # fmt: skip

    def prepare_data(self) -> None:
        """Download the images if ``download`` is set and they are missing."""
        if self.download and self._folders() is None:
            for train in (True, False):
                CIFAR10(self.root, train=train, download=True)

    def load(self, split: str) -> Batch:
        """Return the uint8 images ``(N, 3, 32, 32)`` and int64 labels ``(N,)`` of ``"train"`` or ``"test"``."""
        folders = self._folders()
        return decode_images(ImageFolder(folders / split)) if folders else self._from_torchvision(split)

    def _folders(self) -> Path | None:
        candidates = (self.root, self.root / "cifar10")
        return next((path for path in candidates if (path / "train").is_dir() and (path / "test").is_dir()), None)

    def _from_torchvision(self, split: str) -> Batch:
        try:
            stored = CIFAR10(self.root, train=split == "train")
        except RuntimeError as error:
            raise ValueError(
                f"data.root={str(self.root)!r} contains neither train/<class>/ and test/<class>/ nor torchvision's "
                "CIFAR-10: set --data.root to its directory, or --data.download=true."
            ) from error
        return torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(stored.targets)
