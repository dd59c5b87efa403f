"""Dataset with reproducible random views, identified by keys under which a teacher's logits are cached."""

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
    """A sample with its key or, once collated, a batch with its keys.

    Attributes:
        sample: Item of the wrapped dataset.
        key: Integer that identifies the sample and its view; for a batch an int64 tensor ``(N,)``.
    """

    sample: Any
    key: Any


class Keyed(Dataset[KeyedSample]):
    """Dataset wrapper that limits random augmentation to a fixed number of views per sample, each with a key.

    A view is drawn at random on each access. While the wrapped dataset computes a sample, the global generators of
    Python, NumPy and PyTorch (CPU) are seeded with the key of the view; their states are restored afterwards.

    Args:
        dataset: Map-style dataset.
        num_views: Number of views per sample; 1 for a dataset without random augmentation.
        seed: Seed that, with the key, determines each view.

    Raises:
        ValueError: If ``num_views`` is below 1, or the dataset has no length.

    >>> import lightning_compress as lc
    >>> lc.Keyed(torch.utils.data.TensorDataset(torch.arange(3.0)))[2]
    KeyedSample(sample=(tensor(2.),), key=2)
    """

    def __init__(self, dataset: Dataset[Any], num_views: int = 1, *, seed: int = 0) -> None:
        if num_views < 1:
            raise ValueError(f"num_views={num_views} must be at least 1.")
        if not isinstance(dataset, Sized):
            raise ValueError("Keyed needs a dataset with a length, to number its samples.")
        self.dataset = dataset
        self.num_views = num_views
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> KeyedSample:
        # A negative index becomes the sample's number, so that one sample has one key.
        index = range(len(self))[index]
        view = int(torch.randint(self.num_views, ())) if self.num_views > 1 else 0
        key = index * self.num_views + view
        with _seeded(f"{self.seed} {key}"):
            return KeyedSample(self.dataset[index], key)


@contextmanager
def _seeded(text: str) -> Iterator[None]:
    """Seed the three global generators with a hash of ``text`` inside the context."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed([seed % 2**32, seed >> 32])
    # Not torch.manual_seed, which also seeds CUDA: a forked worker must not initialize it.
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
