"""Data modules of generated images with masks or boxes and of generated sentences with tags, without a download."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

_SPLITS = {"train": 0, "val": 1, "test": 2}
IGNORED = -100
"""Label of positions without a class, such as padding."""


class _SyntheticDataModule(LightningDataModule):
    """Base class of data modules with one dataset for each split, generated in ``setup``."""

    batch_size: int

    def generate(self, num_samples: int, generator: torch.Generator) -> Dataset[Any]:
        """Return the samples of one split."""
        raise NotImplementedError

    def _generate_split(self, split: str, num_samples: int, seed: int) -> Dataset[Any]:
        return self.generate(num_samples, torch.Generator().manual_seed(3 * seed + _SPLITS[split]))

    def _generate_all(self, num_train: int, seed: int) -> None:
        sizes = {"train": num_train, "val": max(num_train // 8, 1), "test": max(num_train // 4, 1)}
        self.datasets = {split: self._generate_split(split, number, seed) for split, number in sizes.items()}

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches of training samples."""
        return DataLoader(self.datasets["train"], self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return batches of validation samples."""
        return DataLoader(self.datasets["val"], self.batch_size)

    def test_dataloader(self) -> DataLoader[Any]:
        """Return batches of test samples."""
        return DataLoader(self.datasets["test"], self.batch_size)


class ShapesDataModule(_SyntheticDataModule):
    """Images ``(3, H, W)`` of discs and squares in noise, with a mask ``(H, W)`` of three classes.

    Class 0 is the background, 1 a disc and 2 a square; each image has one of both, and the later one covers the other.

    Args:
        image_size: Height and width.
        batch_size: Number of images per batch.
        num_train: Number of training images; an eighth as many are for validation, a quarter for testing.
        seed: Seed of the images.

    >>> data = ShapesDataModule(image_size=32, batch_size=4, num_train=8)
    >>> data.setup("fit")
    >>> images, masks = next(iter(data.train_dataloader()))
    >>> images.shape, masks.unique().tolist()
    (torch.Size([4, 3, 32, 32]), [0, 1, 2])
    """

    def __init__(self, image_size: int = 64, batch_size: int = 16, num_train: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.image_size, self.batch_size, self.num_train, self.seed = image_size, batch_size, num_train, seed

    def setup(self, stage: str) -> None:
        """Draw the images of all splits."""
        self._generate_all(self.num_train, self.seed)

    def generate(self, num_samples: int, generator: torch.Generator) -> Dataset[Any]:
        """Return images with their masks."""
        drawing = _draw_shapes(num_samples, self.image_size, generator, max_radius=self.image_size // 5)
        return TensorDataset(drawing.images, drawing.masks)


class BoxesDataModule(_SyntheticDataModule):
    """Images ``(3, H, W)`` of discs and squares in noise, with their classes and boxes.

    Each image has a disc (class 0) and a square (class 1), which may cover it. Batches are images, classes ``(N, 2)``
    and boxes ``(N, 2, 4)``, left, top, right and bottom in pixels; a disc of which less than half is left has the class
    -100.

    Args:
        image_size: Height and width.
        batch_size: Number of images per batch.
        num_train: Number of training images; an eighth as many are for validation, a quarter for testing.
        seed: Seed of the images.

    >>> data = BoxesDataModule(image_size=32, batch_size=4, num_train=8)
    >>> data.setup("fit")
    >>> images, classes, boxes = next(iter(data.train_dataloader()))
    >>> images.shape, classes.shape, boxes.shape
    (torch.Size([4, 3, 32, 32]), torch.Size([4, 2]), torch.Size([4, 2, 4]))
    """

    def __init__(self, image_size: int = 64, batch_size: int = 16, num_train: int = 256, seed: int = 0) -> None:
        super().__init__()
        self.image_size, self.batch_size, self.num_train, self.seed = image_size, batch_size, num_train, seed

    def setup(self, stage: str) -> None:
        """Draw the images of all splits."""
        self._generate_all(self.num_train, self.seed)

    def generate(self, num_samples: int, generator: torch.Generator) -> Dataset[Any]:
        """Return images with the classes and boxes of their objects."""
        drawing = _draw_shapes(num_samples, self.image_size, generator, max_radius=self.image_size // 4)
        visible = (drawing.masks == 1).sum((1, 2)) / (torch.pi * drawing.radius[:, 0] ** 2)
        classes = torch.tensor([0, 1]).repeat(num_samples, 1)
        classes[visible < 0.5, 0] = IGNORED
        # The pixel in row i covers i to i + 1.
        middle, radius = drawing.center.flip(-1) + 0.5, drawing.radius[..., None]
        return TensorDataset(drawing.images, classes, torch.cat([middle - radius, middle + radius], -1))


@dataclass(frozen=True)
class _Drawing:
    """A disc and a square in each image.

    Attributes:
        images: ``(N, 3, H, W)``.
        masks: ``(N, H, W)``, 0 for the background, 1 for the disc and 2 for the square.
        radius: ``(N, 2)``, of disc and square, in pixels.
        center: ``(N, 2, 2)``, row and column.
    """

    images: Tensor
    masks: Tensor
    radius: Tensor
    center: Tensor


def _draw_shapes(num_samples: int, size: int, generator: torch.Generator, *, max_radius: int) -> _Drawing:
    rows, columns = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    # Center and radius of both shapes, in pixels: they lie inside the image.
    radius = torch.randint(size // 10, max_radius, (num_samples, 2, 1, 1), generator=generator)
    center = radius[:, :, None] + (
        torch.rand(num_samples, 2, 2, 1, 1, generator=generator) * (size - 2 * radius[:, :, None])
    )
    down, across = (rows - center[:, :, 0]).abs(), (columns - center[:, :, 1]).abs()
    disc = down[:, 0] ** 2 + across[:, 0] ** 2 <= radius[:, 0] ** 2
    square = torch.maximum(down[:, 1], across[:, 1]) <= radius[:, 1]
    masks = torch.where(square, 2, disc.long())
    colors = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.5, 0.5], [0.5, 1.0, 0.5]])
    noise = torch.randn(num_samples, 3, size, size, generator=generator)
    images = colors[masks].movedim(-1, 1) + 0.3 * noise
    return _Drawing(images, masks, radius.flatten(1), center.flatten(2))


class TaggedTokensDataModule(_SyntheticDataModule):
    """Sentences of random tokens with a tag for each, in the form of the transformers library.

    The tag of a token depends on the token, and on whether token 1 is anywhere in the sentence, as in about half of
    them. Batches are dicts of ``input_ids``, ``attention_mask`` and ``labels``, each ``(N, L)``; padding has the label
    -100.

    Args:
        vocab_size: Number of tokens; token 0 is padding.
        num_tags: Number of tags.
        length: Number of tokens of the longest sentences.
        batch_size: Number of sentences per batch.
        num_train: Number of training sentences; an eighth as many are for validation, a quarter for testing.
        seed: Seed of the sentences.

    >>> data = TaggedTokensDataModule(length=12, batch_size=4, num_train=8)
    >>> data.setup("fit")
    >>> {name: tuple(tensor.shape) for name, tensor in next(iter(data.train_dataloader())).items()}
    {'input_ids': (4, 12), 'attention_mask': (4, 12), 'labels': (4, 12)}
    """

    def __init__(
        self,
        vocab_size: int = 64,
        num_tags: int = 5,
        length: int = 24,
        batch_size: int = 32,
        num_train: int = 1024,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.vocab_size, self.num_tags, self.length = vocab_size, num_tags, length
        self.batch_size, self.num_train, self.seed = batch_size, num_train, seed

    def setup(self, stage: str) -> None:
        """Draw the sentences of all splits."""
        self._generate_all(self.num_train, self.seed)

    def generate(self, num_samples: int, generator: torch.Generator) -> Dataset[Any]:
        """Return sentences with their tags."""
        shape = (num_samples, self.length)
        tokens = torch.randint(2, self.vocab_size, shape, generator=generator)
        # In half of the sentences, at a place that is in all of them.
        place = torch.randint(self.length // 2, (num_samples,), generator=generator)
        is_marked = torch.rand(num_samples, generator=generator) < 0.5
        tokens[is_marked, place[is_marked]] = 1
        lengths = torch.randint(self.length // 2, self.length + 1, (num_samples, 1), generator=generator)
        mask = torch.arange(self.length) < lengths
        tokens = tokens * mask
        tags = (tokens + is_marked[:, None]) % self.num_tags
        return _Dicts(tokens, mask.long(), torch.where(mask, tags, IGNORED))


class _Dicts(Dataset[dict[str, Tensor]]):
    def __init__(self, tokens: Tensor, mask: Tensor, labels: Tensor) -> None:
        self.tensors = {"input_ids": tokens, "attention_mask": mask, "labels": labels}

    def __len__(self) -> int:
        return len(self.tensors["labels"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: tensor[index] for name, tensor in self.tensors.items()}
