"""The data module of image folders of any size, such as ImageNet, with timm's pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningDataModule
from timm.data.transforms_factory import create_transform
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import FakeData, ImageFolder


class ImageFolderDataModule(LightningDataModule):
    """Images in ``<split>/<class>/*``, read from disk and transformed as timm does in training and evaluation.

    Args:
        root: Directory that contains ``train``, and ``val`` or ``test`` or both. Without ``test``, the images of
            ``val`` are tested; without ``val``, there is no validation.
        image_size: Height and width of the images that the network gets.
        batch_size: Number of images per batch.
        num_workers: Number of worker processes per loader, which decode the images.
        auto_augment: timm's name of an augmentation policy, such as ``"rand-m9-mstd0.5"``.
        crop_pct: Fraction of the image that the center crop keeps in evaluation.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, on the same scale as ``mean``.
        dry_run: Replace the images with two batches of noise with ``num_classes`` classes, to try a configuration
            without them; ``root`` is not read.
        num_classes: Number of classes of a dry run.

    Raises:
        ValueError: In ``setup``, if ``root`` does not contain the folders.

    >>> data = ImageFolderDataModule("nowhere", image_size=32, batch_size=4, num_workers=0, dry_run=True)
    >>> data.setup("fit")
    >>> next(iter(data.train_dataloader()))[0].shape
    torch.Size([4, 3, 32, 32])
    """

    def __init__(
        self,
        root: str,
        image_size: int = 224,
        batch_size: int = 64,
        num_workers: int = 4,
        *,
        auto_augment: str | None = None,
        crop_pct: float = 0.875,
        mean: tuple[float, float, float] = (0.485, 0.456, 0.406),
        std: tuple[float, float, float] = (0.229, 0.224, 0.225),
        dry_run: bool = False,
        num_classes: int = 1000,
    ) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.image_size = image_size
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.dry_run, self.num_classes = dry_run, num_classes
        shared: dict[str, Any] = {"input_size": (3, image_size, image_size), "mean": mean, "std": std}
        self.train_transform = create_transform(**shared, is_training=True, auto_augment=auto_augment)
        self.test_transform = create_transform(**shared, is_training=False, crop_pct=crop_pct)

    def setup(self, stage: str) -> None:
        """Find the images of a stage."""
        if stage in ("fit", "validate"):
            self.train = self._dataset("train", self.train_transform)
            has_val = self.dry_run or (self.root / "val").is_dir()
            self.val = self._dataset("val", self.test_transform) if has_val else None
        if stage in ("test", "predict"):
            has_test = self.dry_run or (self.root / "test").is_dir()
            self.test = self._dataset("test" if has_test else "val", self.test_transform)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of training images."""
        return self._loader(self.train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any] | list[DataLoader[Any]]:
        """Return batches of validation images, or an empty list without any."""
        return [] if self.val is None else self._loader(self.val)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of test images."""
        return self._loader(self.test)

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return batches of test images."""
        return self._loader(self.test)

    def _dataset(self, split: str, transform: Any) -> Dataset[Any]:
        if self.dry_run:
            # Larger than the input, as photographs are.
            size = (3, 2 * self.image_size, 2 * self.image_size)
            return FakeData(2 * self.batch_size, size, self.num_classes, transform)
        try:
            return ImageFolder(self.root / split, transform)
        except FileNotFoundError as error:
            raise ValueError(
                f"data.root={str(self.root)!r} does not contain {split}/<class>/ with images: set --data.root to their "
                "directory, or --data.dry_run=true."
            ) from error

    def _loader(self, dataset: Dataset[Any], shuffle: bool = False) -> DataLoader[Any]:
        return DataLoader(
            dataset, self.batch_size, shuffle=shuffle, num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
        )  # fmt: skip
