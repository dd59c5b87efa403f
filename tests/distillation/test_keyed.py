from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import lightning_compress as lc
from lightning_compress.data.images import InMemoryImages, random_crop_and_flip
from lightning_compress.distillation.keyed import KeyedSample


class Noisy(Dataset):
    """Draws from all three generators."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = [random.random(), np.random.rand(), float(torch.rand(())), float(np.random.randn())]
        return torch.tensor([index, *drawn], dtype=torch.float64), index % 3


def views(keyed: lc.Keyed, *, times: int = 1) -> dict[int, Tensor]:
    found: dict[int, Tensor] = {}
    for _ in range(times):
        for index in range(len(keyed)):
            (sample, _), key = keyed[index]
            assert key not in found or torch.equal(found[key], sample)
            found[key] = sample
    return found


def states() -> tuple[Any, ...]:
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def test_the_same_key_is_the_same_view_in_any_order() -> None:
    forwards, keyed = views(lc.Keyed(Noisy())), lc.Keyed(Noisy())
    random.seed(99), np.random.seed(99), torch.manual_seed(99)
    for index in (5, 3, 11, 3, 0):
        assert torch.equal(keyed[index].sample[0], forwards[index])
    assert len({tuple(sample.tolist()[1:]) for sample in forwards.values()}) == 12


def test_keys_are_plain_numbers_of_samples() -> None:
    keyed = lc.Keyed(Noisy())
    assert [keyed[index].key for index in range(12)] == list(range(12))
    for index in (np.int64(3), torch.tensor(3), -9):
        found = keyed[index]
        assert (found.key, type(found.key)) == (3, int)
        assert torch.equal(found.sample[0], keyed[3].sample[0])
    for index in (12, -13):
        with pytest.raises(IndexError):
            keyed[index]
    assert len(list(keyed)) == len(keyed) == 12


def test_several_views() -> None:
    keyed = lc.Keyed(Noisy(), num_views=3)
    found = views(keyed, times=40)
    assert sorted(found) == list(range(36))
    assert len({tuple(sample.tolist()) for sample in found.values()}) == 36
    assert all(int(sample[0]) == key // 3 for key, sample in found.items())


def test_one_view_draws_nothing() -> None:
    before = states()
    lc.Keyed(Noisy())[3]
    assert states() == before


@given(st.integers(-(2**70), 2**70), st.integers(-(2**70), 2**70), st.integers(0, 11))
@settings(max_examples=30, deadline=None)
def test_another_seed_is_another_view_of_each_generator(seed: int, other: int, index: int) -> None:
    ours, theirs = (lc.Keyed(Noisy(), seed=s)[index].sample[0] for s in (seed, other))
    assert torch.equal(ours == theirs, torch.tensor([True] + 4 * [seed == other]))


def test_generators_are_left_as_they_were_also_by_a_dataset_that_fails() -> None:
    class Broken(Noisy):
        def __getitem__(self, index: int) -> Any:
            super().__getitem__(index)
            raise RuntimeError("unreadable")

    for dataset in (Noisy(), Broken()):
        random.seed(1), np.random.seed(2), torch.manual_seed(3)
        before = states()
        try:
            lc.Keyed(dataset)[3]
        except RuntimeError:
            assert isinstance(dataset, Broken)
        assert states() == before


def test_views_are_drawn_with_the_seed_of_the_run() -> None:
    keyed = lc.Keyed(Noisy(), num_views=50)
    keys = []
    for _ in range(2):
        torch.manual_seed(5)
        keys.append([keyed[index].key for index in range(12)])
    assert keys[0] == keys[1]
    assert [keyed[index].key for index in range(12)] != keys[0]


def collected(loader: DataLoader) -> dict[int, Tensor]:
    found = {}
    for batch in loader:
        assert isinstance(batch, KeyedSample)
        (samples, labels), keys = batch
        assert keys.dtype == torch.int64
        assert torch.equal(labels, samples[:, 0].long() % 3)
        found |= dict(zip(keys.tolist(), samples, strict=True))
    return found


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_and_worker_processes(num_workers: int) -> None:
    expected = views(lc.Keyed(Noisy(), num_views=2), times=30)
    loader = DataLoader(lc.Keyed(Noisy(), num_views=2), batch_size=5, shuffle=True, num_workers=num_workers)
    for _ in range(2):
        found = collected(loader)
        assert sorted(key // 2 for key in found) == list(range(12))
        assert all(torch.equal(sample, expected[key]) for key, sample in found.items())


def test_images_in_memory_with_the_usual_collate() -> None:
    images = torch.randint(256, (6, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dataset = InMemoryImages(images, torch.arange(6), mean=(0.5,) * 3, std=(0.25,) * 3, augment=random_crop_and_flip)
    keyed = lc.Keyed(dataset, num_views=2)
    expected: dict[int, Tensor] = {}
    for epoch in range(6):
        for (batch, labels), keys in DataLoader(keyed, batch_size=4, shuffle=epoch % 2 == 0):
            assert batch.shape[1:] == (3, 8, 8)
            assert torch.equal(labels, keys // 2)
            for key, image in zip(keys.tolist(), batch, strict=True):
                assert torch.equal(expected.setdefault(key, image), image)
    assert len({tuple(image.flatten().tolist()) for image in expected.values()}) == len(expected) > 6


def test_nested_samples_are_collated() -> None:
    class Nested(Noisy):
        def __getitem__(self, index: int) -> Any:
            return {"a": torch.ones(2) * index, "b": (index, [str(index)])}

    batch = next(iter(DataLoader(lc.Keyed(Nested()), batch_size=3)))
    assert torch.equal(batch.sample["a"][:, 0], torch.arange(3.0))
    assert torch.equal(batch.sample["b"][0], batch.key)


def test_what_is_refused() -> None:
    class Endless(IterableDataset):
        def __iter__(self) -> Any:
            yield from range(3)

    with pytest.raises(ValueError, match="num_views=0 must be at least 1"):
        lc.Keyed(Noisy(), num_views=0)
    with pytest.raises(ValueError, match="needs a dataset with a length"):
        lc.Keyed(Endless())
    assert lc.Keyed(TensorDataset(torch.arange(3.0)))[2] == ((torch.tensor(2.0),), 2)
