"""Indices of files, and the references in them."""

from __future__ import annotations

import io

import pytest

from lightning_compress.packing.container import header_of, read_index
from lightning_compress.packing.entry import Entry, StreamEntry


def empty(name: str, *, scale: str | None = None) -> Entry:
    return Entry(name, shape=(0,), streams=(StreamEntry("raw", 0),), scale=scale)


def tied(name: str, other: str) -> Entry:
    return Entry(name, shared_with=other)


def names_in(*entries: Entry) -> list[str]:
    data = header_of(entries, 0)
    return [entry.name for entry in read_index(io.BytesIO(data), len(data)).entries]


def test_references_of_one_step() -> None:
    assert names_in(tied("a", "b"), empty("b", scale="c"), empty("c"), tied("d", "c")) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([empty("a"), empty("b"), empty("a")], "two tensors have the same name"),
        ([empty("a"), tied("b", "c")], "'b' refers to 'c', which the file does not contain"),
        ([empty("a", scale="c")], "'a' refers to 'c', which the file does not contain"),
        ([tied("a", "b"), tied("b", "c"), empty("c")], "'a' refers to 'b', which refers to another tensor"),
        ([empty("a", scale="b"), tied("b", "c"), empty("c")], "'a' refers to 'b', which refers to another tensor"),
        ([empty("a", scale="b"), empty("b", scale="c"), empty("c")], "'a' refers to 'b', which refers to another"),
        ([tied("", "")], "'' refers to '', which refers to another tensor"),
    ],
)
def test_names_and_references_that_are_wrong(entries: list[Entry], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names_in(*entries)
