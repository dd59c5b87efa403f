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
        ("crc32", 2**32 - 1, None),
        ("crc32", 2**32, "'4294967296' must be an integer from 0 to 4294967295"),
        ("crc32", True, "'True' must be an integer"),
        ("axis", -1, None),
        ("axis", 2, None),
        ("axis", -2, "'-2' must be an integer from -1 to 2"),
        ("axis", 3, "'3' must be an integer from -1 to 2"),
        ("width", 2, None),
        ("width", 4, None),
        ("width", 0, "'0' must be an integer from 1 to 4"),
        ("width", 3, "vectors of 3 elements are not supported"),
        ("width", 5, "'5' must be an integer from 1 to 4"),
        ("shape", [2**48, 0], None),
        ("shape", [2**47, 0, 2], None),
        ("shape", [2**48 + 1], "'281474976710657' must be an integer from 0"),
        ("shape", [2**47, 0, 3], "a tensor of this shape, with 3 dimensions, exceeds the largest"),
        ("shape", 2, "its shape must be a list"),
        ("streams", [["raw"]], "a stream has no kind or no length"),
        ("streams", ["raw"], "a stream has no kind or no length"),
        ("streams", [["raw", 8, 1.5]], "the parameter '1.5' of a stream must be an integer or a string"),
        ("streams", [["raw", 8, True]], "the parameter 'True' of a stream must be an integer or a string"),
        ("streams", [[1, 8]], "'1' must be a string"),
        ("scale", 1, "'1' must be a string"),
        ("dtype", "float", "the dtype 'float' is not supported"),
        ("dtype", 1, "'1' must be a string"),
        ("odd", 1, "unknown key 'odd'"),
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


@pytest.mark.parametrize("data", [3, None, ["name"], {}, {"name": 1}])
def test_an_entry_has_a_name(data: Any) -> None:
    with pytest.raises(ValueError, match="an entry has no name"):
        parse_entry(data)


def test_an_entry_has_all_keys() -> None:
    for key in ("dtype", "shape", "crc32", "streams"):
        with pytest.raises(ValueError, match=f"the entry of 'w' has no key '{key}'"):
            parse_entry({k: value for k, value in SOUND.items() if k != key})
    assert parse_entry({"name": "w", "same": "v"}).shared_with == "v"
    with pytest.raises(ValueError, match="the entry of 'w' is invalid: unknown key 'same'"):
        parse_entry(SOUND | {"same": "v"})
