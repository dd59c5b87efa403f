"""CIFAR-10."""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from lightning_compress.data.images import Batch, InMemoryDataModule, random_crop_and_flip


class CIFAR10DataModule(InMemoryDataModule):
    """CIFAR-10 from folders of images, or from torchvision's download.

    Args:
        root: Directory with ``train/<class>/*`` and ``test/<class>/*`` (in it or in its ``cifar10/``), or where
            torchvision keeps its copy.
        batch_size: Images per batch.
        num_workers: Worker processes of each loader; the work per batch is small, so none is usually best.
        download: Let torchvision fetch CIFAR-10 into ``root`` where it is not there yet.
        val_size: Number of training images, the same from each class, that are held out for validation; the test
            images are for testing only. 0 trains on all 50,000 and has no validation.
        augment: Crop and mirror training images at random.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        seed: Seed of the choice of validation images.

    Raises:
        ValueError: In ``prepare_data`` or ``setup``, if ``root`` has no CIFAR-10.
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
        """Downloads, if asked and needed."""
        if self.download and self._folders() is None:
            for train in (True, False):
                CIFAR10(self.root, train=train, download=True)

    def load(self, split: str) -> Batch:
        """Images and labels of a split."""
        folders = self._folders()
        return decode(ImageFolder(folders / split)) if folders else self._from_torchvision(split)

    def _folders(self) -> Path | None:
        candidates = (self.root, self.root / "cifar10")
        return next((path for path in candidates if (path / "train").is_dir() and (path / "test").is_dir()), None)

    def _from_torchvision(self, split: str) -> Batch:
        try:
            stored = CIFAR10(self.root, train=split == "train")
        except RuntimeError as error:
            raise ValueError(
                f"data.root={str(self.root)!r} has neither train/<class>/ and test/<class>/ nor torchvision's copy of "
                "CIFAR-10: give --data.root where it is, or --data.download=true."
            ) from error
        return torch.from_numpy(stored.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(stored.targets)


def decode(folder: ImageFolder) -> Batch:
    """All images of a folder as one tensor ``(N, 3, H, W)`` of uint8, and their labels ``(N,)``."""
    images = [pil_to_tensor(folder.loader(path)) for path, _ in folder.samples]
    return torch.stack(images), torch.tensor(folder.targets)
