"""MNIST."""

from __future__ import annotations

from torchvision.datasets import MNIST

from lightning_compress.data.images import Batch, InMemoryDataModule, random_crop


class MNISTDataModule(InMemoryDataModule):
    """MNIST as torchvision keeps it, normalised ``(1, 28, 28)`` images.

    Args:
        root: Directory with torchvision's ``MNIST/raw/*-ubyte``.
        batch_size: Images per batch.
        num_workers: Worker processes of each loader; the work per batch is small, so none is usually best.
        download: Let torchvision fetch MNIST into ``root`` where it is not there yet.
        val_size: Number of training images, the same from each class, that are held out for validation; the test
            images are for testing only. 0 trains on all 60,000 and has no validation.
        augment: Shift training images by up to 2 pixels at random.
        seed: Seed of the choice of validation images.

    Raises:
        ValueError: In ``prepare_data`` or ``setup``, if ``root`` has no MNIST.
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
        """Downloads, if asked and needed."""
        if self.download:
            for train in (True, False):
                MNIST(self.root, train=train, download=True)

    def load(self, split: str) -> Batch:
        """Images and labels of a split."""
        try:
            stored = MNIST(self.root, train=split == "train")
        except RuntimeError as error:
            raise ValueError(
                f"data.root={str(self.root)!r} has no MNIST/raw: give --data.root where it is, or --data.download=true."
            ) from error
        return stored.data.unsqueeze(1), stored.targets
