"""The data modules that the recipes need: digits, which every installation has, and CIFAR-10."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import CIFAR10, ImageFolder
from torchvision.transforms.functional import pil_to_tensor

Batch = tuple[Tensor, Tensor]


class DigitsDataModule(LightningDataModule):
    """Scikit-learn's 1,797 handwritten digits as normalised ``(1, 8, 8)`` images; needs no download.

    A fifth is held out for testing and an eighth of the rest for validation, the same images in every run, with every
    digit's share kept.

    Args:
        batch_size: Images per batch.
    """

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        """Splits and normalises."""
        images, labels = load_digits(return_X_y=True)
        rest, test, rest_y, test_y = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
        train, val, train_y, val_y = train_test_split(rest, rest_y, test_size=0.125, stratify=rest_y, random_state=0)
        mean, std = train.mean(), train.std()

        def dataset(pixels: Sequence[float], digits: Sequence[int]) -> TensorDataset:
            scaled = (torch.as_tensor(pixels, dtype=torch.float32) - mean) / std
            return TensorDataset(scaled.view(-1, 1, 8, 8), torch.as_tensor(digits, dtype=torch.long))

        self.train, self.val, self.test = dataset(train, train_y), dataset(val, val_y), dataset(test, test_y)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches of the 1,257 training images."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """The 180 validation images."""
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """The 360 test images."""
        return DataLoader(self.test, self.batch_size)


class InMemoryImages(Dataset[Batch]):
    """Images that are decoded once, and cropped, flipped and normalised a batch at a time.

    A loader with a sampler of batches calls ``__getitems__`` once per batch, so there is no Python loop over images;
    its ``collate_fn`` must be :func:`as_is`. Randomness comes from PyTorch's global generator.

    Args:
        images: ``(N, 3, H, W)`` of uint8.
        labels: ``(N,)`` of int64.
        augment: Shift by up to 4 pixels (a random crop out of the zero-padded image) and mirror half of the images.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, *, augment: bool, mean: Sequence[float], std: Sequence[float]
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
        if self.augment:
            images = random_crop_and_flip(images)
        # Padding comes before normalising, as in torchvision's usual transforms: the border is black, not grey.
        return images.float().mul_(self.scale).add_(self.shift), self.labels[chosen]


def random_crop_and_flip(images: Tensor, pad: int = 4) -> Tensor:
    """Crops each image at random out of its zero-padded self, and mirrors half of them; ``(B, C, H, W)``."""
    num, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
    top, left = torch.randint(2 * pad + 1, (2, num, 1))
    rows = top + torch.arange(height)
    columns = left + torch.arange(width)
    columns = torch.where(torch.rand(num, 1) < 0.5, columns.flip(1), columns)
    each = torch.arange(num)[:, None, None]
    # Indexing with tensors around a slice puts the channels last.
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def as_is(batch: Any) -> Any:
    """Collates a batch that is one already."""
    return batch


class CIFAR10DataModule(LightningDataModule):
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
        super().__init__()
        self.root = Path(root).expanduser()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.download = download
        self.val_size = val_size
        self.augment = augment
        self.mean, self.std, self.seed = mean, std, seed
        self._decoded: dict[str, Batch] = {}

    def prepare_data(self) -> None:
        """Downloads, if asked and needed."""
        if self.download and self._folders() is None:
            for train in (True, False):
                CIFAR10(self.root, train=train, download=True)

    def setup(self, stage: str) -> None:
        """Decodes what the stage needs, once."""
        if stage in ("fit", "validate"):
            train, val = self._split(*self._load("train"))
            self.train = self._dataset(*train, augment=self.augment)
            self.val = self._dataset(*val, augment=False)
        if stage in ("test", "predict"):
            self.test = self._dataset(*self._load("test"), augment=False)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled training batches."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """The images held out for validation, if any."""
        return self._loader(self.val) if len(self.val) else []

    def test_dataloader(self) -> DataLoader[Any]:
        """The 10,000 test images."""
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader[Any]:
        """The 10,000 test images."""
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

    def _dataset(self, images: Tensor, labels: Tensor, *, augment: bool) -> InMemoryImages:
        return InMemoryImages(images, labels, augment=augment, mean=self.mean, std=self.std)

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

    def _folders(self) -> Path | None:
        candidates = (self.root, self.root / "cifar10")
        return next((path for path in candidates if (path / "train").is_dir() and (path / "test").is_dir()), None)

    def _load(self, split: str) -> Batch:
        if split not in self._decoded:
            folders = self._folders()
            self._decoded[split] = decode(ImageFolder(folders / split)) if folders else self._from_torchvision(split)
        return self._decoded[split]

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
