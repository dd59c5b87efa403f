"""Samples that are told from each other, so that what a teacher said of one is found again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset


class KeyedSample(NamedTuple):
    """A sample, or a batch of samples once collated.

    Attributes:
        sample: What the dataset returns.
        key: Number of the sample and of its view; a tensor ``(N,)`` of a batch.
    """

    sample: Any
    key: Any


class Keyed(Dataset[KeyedSample]):
    """A dataset in which a sample has a few random views, each with a key, instead of a new one every time.

    Before the dataset is asked for a sample, Python's, NumPy's and PyTorch's random numbers are set by its key, and
    afterwards they are as they were. Views are drawn at random.

    Args:
        dataset: A dataset with a length.
        num_views: Number of views of each sample: 1 for a dataset that changes nothing at random.
        seed: Other seeds have other views.

    Raises:
        ValueError: For a number of views below 1, and a dataset without a length.

    >>> Keyed(torch.utils.data.TensorDataset(torch.arange(3.0)))[2]
    KeyedSample(sample=(tensor(2.),), key=2)
    """

    def __init__(self, dataset: Dataset[Any], num_views: int = 1, *, seed: int = 0) -> None:
        if num_views < 1:
            raise ValueError(f"num_views={num_views} must be at least 1.")
        if not isinstance(dataset, Sized):
            raise ValueError("Keyed needs a dataset with a length, so that its samples have numbers.")
        self.dataset = dataset
        self.num_views = num_views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> KeyedSample:
        index = range(len(self))[index]  # of one from the end, its number
        view = int(torch.randint(self.num_views, ())) if self.num_views > 1 else 0
        key = index * self.num_views + view
        with _seeded(f"{self.seed} {key}"):
            return KeyedSample(self.dataset[index], key)


@contextmanager
def _seeded(of: str) -> Iterator[None]:
    seed = int.from_bytes(hashlib.blake2b(of.encode(), digest_size=8).digest(), "little")
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])
    torch.default_generator.manual_seed(seed)  # of the CPU only, as a worker must not touch a GPU
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
