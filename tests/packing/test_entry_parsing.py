"""Bounds of the numbers in an entry."""

from __future__ import annotations

from typing import Any

import pytest

from lightning_compress.packing.entry_parsing import parse_entry

SOUND = {"name": "w", "dtype": "float32", "shape": [2], "crc32": 0, "streams": [["raw", 8]]}


@pytest.mark.parametrize(
    ("key", "sound", "message"),
    [
        ("streams", [["raw", 0]] * 8, None),
        ("streams", [["raw", 0]] * 9, "its streams must be a list of at most 8"),
        ("shape", [1] * 64, None),
        ("shape", [1] * 65, "its shape must be a list of at most 64 integers"),
        ("half", True, None),
        ("half", 1, "half must be true or false, not '1'"),
        ("minus", 1, None),
        ("minus", 2**15 - 1, None),
        ("minus", 0, "'0' must be an integer from 1 to 32767"),
        ("minus", 2**15, "'32768' must be an integer from 1 to 32767"),
        ("minus", 1.0, "'1.0' must be an integer"),
    ],
)
def test_bounds(key: str, sound: Any, message: str | None) -> None:
    entry = SOUND | {key: sound}
    if message is None:
        assert parse_entry(entry).to_json() == entry
    else:
        with pytest.raises(ValueError, match=f"the entry of 'w' is invalid: {message}"):
            parse_entry(entry)


@pytest.mark.parametrize("dtype", ["float16", "int64", "complex64"])
def test_only_wider_numbers_are_rounded(dtype: str) -> None:
    with pytest.raises(ValueError, match=f"a tensor of dtype {dtype} cannot be rounded to float16"):
        parse_entry(SOUND | {"dtype": dtype, "half": True})
