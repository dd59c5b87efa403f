"""The MNIST data module."""

from __future__ import annotations

from torchvision.datasets import MNIST

from lightning_compress.data.images import Batch, InMemoryDataModule, random_crop


class MNISTDataModule(InMemoryDataModule):
    """MNIST from torchvision's files, as normalized ``(1, 28, 28)`` float32 images.

    Args:
        root: Directory that contains torchvision's ``MNIST/raw/*-ubyte``.
        batch_size: Number of images per batch.
        num_workers: Number of worker processes per loader; the work per batch is small, so 0 is usually fastest.
        download: Download MNIST to ``root`` with torchvision if it is missing.
        val_size: Number of training images held out for validation, balanced over the classes. With 0, all 60,000
            images are used for training and there is no validation; the test images are never used for either.
        augment: Shift training images randomly by up to 2 pixels.
        seed: Seed of the validation split.

    Raises:
        ValueError: In ``setup``, if ``root`` does not contain MNIST.
    """

    augmentation = staticmethod(random_crop)

    def __init__(
        self,
        root: str = "data",
        batch_size: int = 128,
        num_workers: int = 0,
        *,
        download: bool = False,
        val_size: int = 5000,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(
            root, batch_size, num_workers, download=download, val_size=val_size, augment=augment, mean=(0.1307,),
            std=(0.3081,), seed=seed,
        )  # fmt: skip

    def prepare_data(self) -> None:
        """Download the images if ``download`` is set and they are missing."""
        if self.download:
            for train in (True, False):
                MNIST(self.root, train=train, download=True)

    def load(self, split: str) -> Batch:
        """Return the uint8 images ``(N, 1, 28, 28)`` and int64 labels ``(N,)`` of ``"train"`` or ``"test"``."""
        try:
            stored = MNIST(self.root, train=split == "train")
        except RuntimeError as error:
            raise ValueError(
                f"data.root={str(self.root)!r} does not contain MNIST/raw: set --data.root to its directory, or "
                "--data.download=true."
            ) from error
        return stored.data.unsqueeze(1), stored.targets
