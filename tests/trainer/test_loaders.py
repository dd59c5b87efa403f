from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SubsetRandomSampler

from lightning_compress.trainer.loaders import first_batch

DATA = torch.arange(12.0).view(12, 1)
BATCHES = [DATA[:4], DATA[4:8]]


class Stream(IterableDataset):
    """Counts how often it was read."""

    def __init__(self, items: Any) -> None:
        self.items = items
        self.num_read = 0

    def __iter__(self) -> Iterator[Tensor]:
        for item in self.items:
            self.num_read += 1
            yield item


class Prefetching(DataLoader):
    def __iter__(self) -> Any:
        return (batch + 100 for batch in super().__iter__())


def shuffled() -> RandomSampler:
    return RandomSampler(DATA, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("loader", "expected"),
    [
        (lambda: DataLoader(DATA, 4), [0, 1]),
        (lambda: DataLoader(DATA, 4, shuffle=True), [0, 1]),
        (lambda: DataLoader(DATA, 4, sampler=SubsetRandomSampler([7])), [7]),
        (lambda: DataLoader(DATA, batch_sampler=[[5, 6, 7], [8]]), [5, 6]),
        (lambda: DataLoader(BATCHES, batch_size=None), [0, 1, 2, 3]),
        (lambda: DataLoader(DATA, batch_size=None, sampler=[[3, 4], [5]]), [3, 4]),
        (lambda: DataLoader(Stream(DATA), 4), [0, 1]),
        (lambda: DataLoader(Stream(BATCHES), batch_size=None), [0, 1, 2, 3]),
        (lambda: Stream(BATCHES), [0, 1, 2, 3]),
        (lambda: Prefetching(DATA, 4), [100, 101, 102, 103]),
    ],
)
def test_the_first_samples_of_every_kind_of_loader(loader: Callable[[], Any], expected: list[int]) -> None:
    assert first_batch(loader(), max_samples=2).flatten().tolist() == expected


def test_several_loaders_are_combined() -> None:
    loaders = {"a": DataLoader(DATA, 2), "b": [DataLoader(BATCHES, batch_size=None)]}
    for combined in (loaders, CombinedLoader(loaders, "min_size")):
        batch = first_batch(combined)
        assert batch["a"].flatten().tolist() == [0, 1]
        assert torch.equal(batch["b"][0], BATCHES[0])


def test_nothing_is_advanced() -> None:
    stream, sampler = Stream(DATA), shuffled()
    first_batch(DataLoader(stream, 4))
    assert stream.num_read == 0
    first_batch(DataLoader(DATA, batch_sampler=BatchSampler(sampler, 4, False)))
    assert list(sampler) == list(shuffled())


def test_data_that_would_be_advanced_or_is_empty_is_refused() -> None:
    with pytest.raises(ValueError, match=r"would advance this training data \(generator\): give example_inputs"):
        first_batch(item for item in BATCHES)
    with pytest.raises(ValueError, match="training data is empty before the fit"):
        first_batch(DataLoader(Stream([]), 4))
