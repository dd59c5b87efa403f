"""Images that fit into memory, as uint8."""

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
    """Images that are decoded once, and cropped, flipped and normalised a batch at a time.

    A loader with a sampler of batches calls ``__getitems__`` once per batch, so there is no Python loop over images;
    its ``collate_fn`` must be :func:`as_is`. Randomness comes from PyTorch's global generator.

    Args:
        images: ``(N, 3, H, W)`` of uint8.
        labels: ``(N,)`` of int64.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        augment: What happens to a batch of uint8 images, such as :func:`random_crop_and_flip`.
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
        """A batch of images ``(B, 3, H, W)``, float32 and normalised, and their labels ``(B,)``."""
        chosen = torch.as_tensor(indices)
        images = self.images[chosen]
        if self.augment is not None:
            images = self.augment(images)
        # Padding comes before normalising, as in torchvision's usual transforms: the border is black, not grey.
        return images.float().mul_(self.scale).add_(self.shift), self.labels[chosen]


def random_crop_and_flip(images: Tensor) -> Tensor:
    """Crops each image at random out of itself with 4 zeros around it, and mirrors half of them; ``(B, C, H, W)``."""
    images = random_crop(images, pad=4)
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(3), images)


def random_crop(images: Tensor, pad: int = 2) -> Tensor:
    """Crops each image at random out of its zero-padded self; ``(B, C, H, W)``."""
    num, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    top, left = torch.randint(2 * pad + 1, (2, num, 1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    each = torch.arange(num)[:, None, None]
    # Indexing with tensors around a slice puts the channels last.
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def as_is(batch: Any) -> Any:
    """Collates a batch that is one already."""
    return batch


class InMemoryDataModule(LightningDataModule):
    """Training, validation and test images that are held as uint8.

    Args:
        root: Where the images are.
        batch_size: Images per batch.
        num_workers: Worker processes of each loader; the work per batch is small, so none is usually best.
        download: Let torchvision fetch the images into ``root`` where they are not there yet.
        val_size: Number of training images, the same from each class, that are held out for validation.
        augment: Change training images at random, as :attr:`augmentation` does.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        seed: Seed of the choice of validation images.

    Attributes:
        augmentation: Changes a batch of uint8 images at random.
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
        """Images ``(N, C, H, W)`` of uint8 and labels ``(N,)`` of ``"train"`` or ``"test"``."""

    def setup(self, stage: str) -> None:
        """Decodes what the stage needs, once."""
        if stage in ("fit", "validate"):
            train, val = self._split(*self._load("train"))
            self.train = self._dataset(*train, augment=self.augmentation if self.augment else None)
            self.val = self._dataset(*val)
        if stage in ("test", "predict"):
            self.test = self._dataset(*self._load("test"))

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The images held out for validation, if any."""
        return self._loader(self.val) if len(self.val) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """The test images."""
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The test images."""
        return self._loader(self.test)

    def _loader(self, dataset: Dataset[Batch], shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            dataset,
            self.batch_size,
            shuffle=shuffle,
            collate_fn=as_is,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )

    def _dataset(
        self, images: Tensor, labels: Tensor, augment: Callable[[Tensor], Tensor] | None = None
    ) -> InMemoryImages:
        return InMemoryImages(images, labels, mean=self.mean, std=self.std, augment=augment)

    def _split(self, images: Tensor, labels: Tensor) -> tuple[Batch, Batch]:
        """Training and validation parts, the latter with as many images of each class as of any other."""
        if not 0 <= self.val_size < len(images):
            raise ValueError(f"data.val_size={self.val_size} must lie in [0, {len(images)}).")
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
        # Sorting by rank within the class first interleaves the classes.
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
