"""LightningDataModules used by the recipes."""

from lightning_compress.data.cifar10 import CIFAR10DataModule
from lightning_compress.data.digits import DigitsDataModule
from lightning_compress.data.images import InMemoryImages, random_crop_and_flip
from lightning_compress.data.mnist import MNISTDataModule

__all__ = ["CIFAR10DataModule", "DigitsDataModule", "InMemoryImages", "MNISTDataModule", "random_crop_and_flip"]
