"""First batches of training data, read without advancing its loaders, samplers or datasets."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import islice
from typing import Any

from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, RandomSampler, SequentialSampler

from lightning_compress.trainer.queries import is_a

ADVICE = "give example_inputs, or set the LightningModule's example_input_array."


def first_batch(loaders: Any, max_samples: int | None = None) -> Any:
    """Return the first batch of one or several loaders, combined as Lightning does it.

    Args:
        loaders: A loader, a ``CombinedLoader``, or a list or dict of loaders.
        max_samples: Largest number of samples, where a loader collates single samples; by default its batch size.

    Raises:
        ValueError: If the data is empty, or if reading it would advance it.

    >>> first_batch(DataLoader(range(8), batch_size=4), max_samples=2)
    tensor([0, 1])
    """
    loaders = loaders.iterables if is_a(loaders, "CombinedLoader") else loaders
    return tree_map(lambda loader: _first(loader, max_samples), loaders)


def _first(loader: Any, max_samples: int | None) -> Any:
    # A loader with an iteration of its own (graph sampling, prefetching) is copied as it is.
    if not isinstance(loader, DataLoader) or type(loader).__iter__ is not DataLoader.__iter__:
        return _next(iter(_copied(loader)))
    dataset, size = loader.dataset, loader.batch_size
    # A loader of its own: the iterator of the user's may be stateful, and its workers are not started twice.
    options: dict[str, Any] = {"collate_fn": loader.collate_fn}
    if isinstance(dataset, IterableDataset):
        size = None if size is None else min(size, max_samples or size)
        return _next(iter(DataLoader(_copied(dataset), batch_size=size, **options)))
    if size is None and loader.batch_sampler is None:  # items of the dataset are batches
        return _next(iter(DataLoader(dataset, batch_size=None, sampler=_first_keys(loader, 1), **options)))
    if size is None:
        keys = list(_next(iter(_copied(loader.batch_sampler, dataset))))[:max_samples]
    else:
        keys = _first_keys(loader, min(size, max_samples or size))
    return _next(iter(DataLoader(dataset, batch_sampler=[keys], **options)))


def _next(batches: Iterator[Any]) -> Any:
    try:
        return next(batches)
    except StopIteration:
        raise ValueError(f"The training data is empty before the fit: {ADVICE}") from None


def _first_keys(loader: DataLoader, number: int) -> list[Any]:
    """Return the first keys of a sampler; of a shuffled dataset the first samples, so that no generator is read."""
    if type(loader.sampler) in (SequentialSampler, RandomSampler):
        return list(range(min(number, len(loader.dataset))))  # type: ignore[arg-type]
    return list(islice(_copied(loader.sampler, loader.dataset), number))


def _copied(source: Any, dataset: Any = None) -> Any:
    """Return a copy that can be read in place of a sampler, a loader or an iterable dataset."""
    try:
        return copy.deepcopy(source, {id(dataset): dataset})  # samplers may refer to the dataset
    except Exception as error:
        raise ValueError(
            f"Reading a batch before the fit would advance this training data ({type(source).__name__}): {ADVICE}"
        ) from error
