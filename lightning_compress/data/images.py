"""Datasets and data modules of images held in memory as uint8."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

Batch = tuple[Tensor, Tensor]


class InMemoryImages(Dataset[Batch]):
    """Dataset of decoded images that are augmented and normalized one batch at a time.

    A ``DataLoader`` calls ``__getitems__`` once per batch, which avoids a Python loop over images; its ``collate_fn``
    must be :func:`identity_collate`. Augmentation draws from PyTorch's global random generator.

    Args:
        images: Tensor of shape ``(N, C, H, W)`` and dtype uint8.
        labels: Tensor of shape ``(N,)`` and dtype int64.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, on the same scale as ``mean``.
        augment: Augmentation of a batch of uint8 images, such as :func:`random_crop_and_flip`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.images = images
        self.labels = labels
        self.augment = augment
        self.scale = 1 / (255 * torch.tensor(std).view(1, -1, 1, 1))
        self.shift = -(torch.tensor(mean) / torch.tensor(std)).view(1, -1, 1, 1)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Batch:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return a batch of normalized float32 images ``(B, C, H, W)`` and their labels ``(B,)``."""
        selected = torch.as_tensor(indices)
        images = self.images[selected]
        if self.augment is not None:
            images = self.augment(images)
        # Augmentation comes before normalization, as in torchvision's usual transforms: the padding is black, not gray.
        return images.float().mul_(self.scale).add_(self.shift), self.labels[selected]


def random_crop_and_flip(images: Tensor) -> Tensor:
    """Apply a random crop with 4 pixels of zero padding and a random horizontal flip to each image.

    Args:
        images: Tensor of shape ``(B, C, H, W)``.
    """
    images = random_crop(images, pad=4)
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)


def random_crop(images: Tensor, pad: int = 2) -> Tensor:
    """Crop each image at a random position after zero padding; the size stays the same.

    Args:
        images: Tensor of shape ``(B, C, H, W)``.
        pad: Number of pixels of zero padding on every side.
    """
    num, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    top, left = torch.randint(2 * pad + 1, (2, num, 1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    samples = torch.arange(num)[:, None, None]
    # Advanced indexing around a slice moves the channels to the last dimension.
    return padded[samples, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def identity_collate(batch: Any) -> Any:
    """Return a batch that the dataset has already collated."""
    return batch


class InMemoryDataModule(LightningDataModule):
    """Base class of data modules that hold their training, validation and test images as uint8.

    Args:
        root: Directory of the images.
        batch_size: Number of images per batch.
        num_workers: Number of worker processes per loader; the work per batch is small, so 0 is usually fastest.
        download: Download the images to ``root`` with torchvision if they are missing.
        val_size: Number of training images held out for validation, balanced over the classes.
        augment: Apply :attr:`augmentation` to the training images.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, on the same scale as ``mean``.
        seed: Seed of the validation split.

    Attributes:
        augmentation: Random augmentation of a batch of uint8 images.
    """

    augmentation: Callable[[Tensor], Tensor]

    def __init__(
        self,
        root: str,
        batch_size: int,
        num_workers: int,
        *,
        download: bool,
        val_size: int,
        augment: bool,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.download = download
        self.val_size = val_size
        self.augment = augment
        self.mean, self.std, self.seed = mean, std, seed
        self._decoded: dict[str, Batch] = {}

    @abstractmethod
    def load(self, split: str) -> Batch:
        """Return the uint8 images ``(N, C, H, W)`` and int64 labels ``(N,)`` of ``"train"`` or ``"test"``."""

    def setup(self, stage: str) -> None:
        """Decode the images of a stage; every split is decoded once."""
        if stage in ("fit", "validate"):
            train, val = self._split(*self._load("train"))
            self.train = self._dataset(*train, augment=self.augmentation if self.augment else None)
            self.val = self._dataset(*val)
        if stage in ("test", "predict"):
            self.test = self._dataset(*self._load("test"))

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of training images."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return batches of validation images, or an empty list if ``val_size`` is 0."""
        return self._loader(self.val) if len(self.val) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of test images."""
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of test images."""
        return self._loader(self.test)

    def _loader(self, dataset: Dataset[Batch], shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=shuffle,
            collate_fn=identity_collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _dataset(
        self, images: Tensor, labels: Tensor, augment: Callable[[Tensor], Tensor] | None = None
    ) -> InMemoryImages:
        return InMemoryImages(images, labels, mean=self.mean, std=self.std, augment=augment)

    def _split(self, images: Tensor, labels: Tensor) -> tuple[Batch, Batch]:
        """Split the training images into a training set and a class-balanced validation set."""
        if not 0 <= self.val_size < len(images):
            raise ValueError(f"data.val_size={self.val_size} must be in [0, {len(images)}).")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        # Sorted by rank within their class, the images cycle through the classes: any prefix is balanced.
        rank = torch.zeros(len(images), dtype=torch.long)
        for label in labels.unique():
            members = order[labels[order] == label]
            rank[members] = torch.arange(len(members))
        order = order[rank[order].argsort(stable=True)]
        val, train = order[: self.val_size], order[self.val_size :].sort().values
        return (images[train], labels[train]), (images[val], labels[val])

    def _load(self, split: str) -> Batch:
        if split not in self._decoded:
            self._decoded[split] = self.load(split)
        return self._decoded[split]
