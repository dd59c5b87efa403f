"""Streams that do not fit their tensor, by the functions that read them."""

from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor

from lightning_compress.packing.context_coding import ContextModel, SignedSymbols, decode, model_symbols
from lightning_compress.packing.entry import Entry
from lightning_compress.packing.sorted_codebooks import plan_sorted_codebook
from lightning_compress.packing.streams import Stream
from lightning_compress.packing.tensor_decoder import decode_tensor


def no_scale(name: str) -> Tensor:
    raise AssertionError(name)


BITS = Stream("indices", b"", ("bits",))
# Most significant bytes of 2, and lower ones of 3 to 6.
SPLIT = [Stream("split", b""), Stream("codebook", b"\2", (1,)), BITS, Stream("lower", b"\3\4\5\6")]


@pytest.mark.parametrize(
    ("dtype", "streams", "message"),
    [
        ("float32", [Stream("exponents", b"\0\1" + bytes(12), (1,))], "must have 0 parameters, but has 1"),
        ("bool", [Stream("exponents", b"\0\1")], "cannot be split into bytes"),
        ("bool", [Stream("split", b"")], "cannot be split into bytes"),
        ("int16", SPLIT[:-1], "a stream is missing"),
        ("int16", [*SPLIT[:-1], Stream("lower", bytes(3))], "3 bytes cannot hold the lower bytes of 4 values"),
        ("int16", [SPLIT[0], Stream("range", b"", (1, 1)), *SPLIT[2:]], "a codebook and indices must follow split"),
        ("float32", [Stream("mask", b"", (1,)), Stream("raw", b"")], "must have 0 parameters, but has 1"),
        ("float32", [Stream("uniform", bytes(7)), BITS], "a uniform codebook is damaged"),
        ("float16", [Stream("uniform", bytes(8)), BITS], "a uniform codebook is damaged"),
        ("float32", [Stream("uniform", bytes(8), (1,)), BITS], "must have 0 parameters, but has 1"),
        ("float32", [Stream("codebook", bytes(8), (1,)), BITS], "8 bytes cannot hold a codebook of 1 entries"),
        ("float32", [Stream("codebook", bytes(8), (3,)), BITS], "8 bytes cannot hold a codebook of 3 entries"),
        ("float32", [Stream("codebook", bytes(4), (True,)), BITS], "'True' must be an integer"),
        ("uint8", [Stream("codebook", b"", (0,)), Stream("neighbors", b"", (0,))], "'0' must be an integer from 1 to"),
        ("int16", [Stream("range", b"", (1, 513)), Stream("neighbors", b"", (0,))], "'513' must be an integer"),
        ("int16", [Stream("range", b"", (-(2**15) - 1, 1)), BITS], "'-32769' must be an integer from -32768 to 32767"),
        ("int16", [Stream("range", b"", (2**15, 1)), BITS], "'32768' must be an integer from -32768 to 32767"),
        ("int16", [Stream("range", b"", (7, 0)), BITS], "'0' must be an integer from 1 to 32761"),
        ("int16", [Stream("range", b"", (7, 2**15)), BITS], "'32768' must be an integer from 1 to 32761"),
        ("float32", [Stream("blocks", bytes(3), (2,)), BITS], "3 bytes cannot hold the codebooks of 2 groups"),
        ("float32", [Stream("blocks", bytes(7), (2,)), BITS], "7 bytes cannot hold the codebooks of 2 groups"),
        ("float32", [Stream("blocks", bytes(4), (2,)), BITS], "the codebook is empty"),
    ],
)
def test_a_stream_that_does_not_fit(dtype: str, streams: list[Stream], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decode_tensor(Entry("w", dtype, (4,)), streams, no_scale)


def test_split_values() -> None:
    assert decode_tensor(Entry("w", "int16", (4,)), SPLIT, no_scale).tolist() == [0x203, 0x204, 0x205, 0x206]


@pytest.mark.parametrize(("smallest", "num_values"), [(-(2**15), 2**16), (2**15 - 1, 1)])
def test_the_largest_ranges(smallest: int, num_values: int) -> None:
    bits = num_values.bit_length() - 1
    streams = [Stream("range", b"", (smallest, num_values)), Stream("indices", b"\xff" * (4 * bits // 8), ("bits",))]
    assert decode_tensor(Entry("w", "int16", (4,)), streams, no_scale).tolist() == [2**15 - 1] * 4


@pytest.mark.parametrize(
    "streams",
    [
        [Stream("exponents", b"\0\1" + bytes(28))],
        [Stream("split", b""), Stream("codebook", b"\1", (1,)), BITS, Stream("lower", bytes(28))],
        [Stream("range", b"", (5, 1)), BITS],
        [Stream("blocks", b"\1\0\1\0" + bytes(16), (2,)), BITS],
        [plan_sorted_codebook(np.array([2**40 + 7], "<u8")), BITS],
    ],
    ids=lambda streams: streams[0].kind,
)
@pytest.mark.parametrize("wide", [Entry("w", "complex128", (4,)), Entry("w", "float32", (4, 4), width=4)])
def test_an_encoding_of_single_integers_for_values_of_sixteen_bytes(streams: list[Stream], wide: Entry) -> None:
    assert decode_tensor(Entry("w", "int64", (4,)), streams, no_scale).shape == (4,)
    with pytest.raises(ValueError, match=f"{streams[0].kind!r} is not an encoding of values of 16 bytes"):
        decode_tensor(wide, streams, no_scale)


def test_words_after_the_last_symbol() -> None:
    meaning = SignedSymbols(2, 0, with_zero=True)
    symbols = np.arange(100, dtype=np.uint8) % 2
    data = model_symbols(symbols, ContextModel.of_neighbors((100,), 2), meaning).encode()
    assert np.array_equal(decode(data, ContextModel.of_neighbors((100,), 2), meaning), symbols)
    with pytest.raises(ValueError, match="does not end after its last symbol"):
        decode(b"\1\0\0\0" + data, ContextModel.of_neighbors((100,), 2), meaning)
