"""LightningDataModules used by the recipes."""

from lightning_compress.data.cifar10 import CIFAR10DataModule
from lightning_compress.data.digits import DigitsDataModule
from lightning_compress.data.image_folders import ImageFolderDataModule
from lightning_compress.data.images import InMemoryImages, random_crop_and_flip
from lightning_compress.data.mnist import MNISTDataModule
from lightning_compress.data.synthetic import BoxesDataModule, ShapesDataModule, TaggedTokensDataModule

__all__ = [
    "BoxesDataModule",
    "CIFAR10DataModule",
    "DigitsDataModule",
    "ImageFolderDataModule",
    "InMemoryImages",
    "MNISTDataModule",
    "ShapesDataModule",
    "TaggedTokensDataModule",
    "random_crop_and_flip",
]
