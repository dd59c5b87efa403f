"""Scikit-learn's handwritten digits, included in every installation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, TensorDataset


class DigitsDataModule(LightningDataModule):
    """Scikit-learn's 1,797 handwritten digits as normalized ``(1, 8, 8)`` float32 images, without a download.

    A fixed stratified split holds out one fifth of the images for testing and one eighth of the rest for validation.

    Args:
        batch_size: Number of images per batch.

    >>> data = DigitsDataModule(batch_size=32)
    >>> data.setup("fit")
    >>> images, labels = next(iter(data.train_dataloader()))
    >>> images.shape, labels.dtype
    (torch.Size([32, 1, 8, 8]), torch.int64)
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Split the images and normalize them with the statistics of the training set."""
        images, labels = load_digits(return_X_y=True)
        rest, test, rest_y, test_y = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
        train, val, train_y, val_y = train_test_split(rest, rest_y, test_size=0.125, stratify=rest_y, random_state=0)
        mean, std = train.mean(), train.std()

        def dataset(pixels: Sequence[float], digits: Sequence[int]) -> TensorDataset:
            scaled = (torch.as_tensor(pixels, dtype=torch.float32) - mean) / std
            return TensorDataset(scaled.view(-1, 1, 8, 8), torch.as_tensor(digits, dtype=torch.long))

        self.train, self.val, self.test = dataset(train, train_y), dataset(val, val_y), dataset(test, test_y)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of the 1,257 training images."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return batches of the 180 validation images."""
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of the 360 test images."""
        return DataLoader(self.test, self.batch_size)
