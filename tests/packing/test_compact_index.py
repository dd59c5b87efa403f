"""Names, shapes and lengths in few bytes, and back."""

from __future__ import annotations

import io
import json
import random

import pytest

from lightning_compress.packing.compact_index import deflate_index, deflate_text, parse_index, read_deflated
from lightning_compress.packing.entry import Entry, StreamEntry
from lightning_compress.packing.length_lists import pack_lengths, unpack_lengths
from lightning_compress.packing.name_lists import restore_names, shorten_names


def resnet20() -> list[Entry]:
    """A clustered ResNet-20 with raw normalization layers."""
    entries = [conv("conv1.weight", 16, 3), *norm("bn1", 16)]
    width = 16
    for layer in range(3):
        for block in range(3):
            for part in (1, 2):
                inputs, width = width, 16 * 2**layer
                entries += [conv(f"layer{layer + 1}.{block}.conv{part}.weight", width, inputs)]
                entries += norm(f"layer{layer + 1}.{block}.bn{part}", width)
    raw = Entry("linear.bias", shape=(10,), streams=(StreamEntry("raw", 40),), crc32=None)
    streams = (StreamEntry("sorted", 60), StreamEntry("neighbors", 320, (0,)))
    return [*entries, Entry("linear.weight", shape=(10, 64), streams=streams, crc32=None), raw]


def conv(name: str, outputs: int, inputs: int) -> Entry:
    rng = random.Random(name)
    size = outputs * inputs * 9 * rng.uniform(0.4, 0.5) // 4 * 4
    streams = (StreamEntry("sorted", rng.randrange(50, 60)), StreamEntry("neighbors", int(size), (0,)))
    return Entry(name, shape=(outputs, inputs, 3, 3), streams=streams, crc32=None)


def norm(name: str, width: int) -> list[Entry]:
    leaves = ("weight", "bias", "running_mean", "running_var")
    raw = StreamEntry("raw", 4 * width)
    count = Entry(f"{name}.num_batches_tracked", "int64", (), streams=(StreamEntry("raw", 8),), crc32=None)
    return [*(Entry(f"{name}.{leaf}", shape=(width,), streams=(raw,), crc32=None) for leaf in leaves), count]


def inflated(data: bytes) -> list[Entry]:
    return parse_index(read_deflated(io.BytesIO(data + b"tensors"))[0])


def test_a_resnet_20_takes_a_hundred_and_fifty_bytes() -> None:
    entries = resnet20()
    data = deflate_index(entries)
    assert len(entries) == 116
    assert len(data) < 147  # 300 with the header of safetensors and two checksums
    assert inflated(data) == entries
    assert read_deflated(io.BytesIO(data + b"tensors"))[1] == data


def test_shapes_that_follow_from_the_tensors_before_are_not_written() -> None:
    """A second layer has as many inputs as outputs, a vector the size of its layer, and a scalar is a scalar again."""
    shapes = {
        **{"conv0.weight": (16, 3, 3, 3), "conv0.bias": (16,), "conv1.weight": (16, 16, 3, 3), "conv1.bias": (16,)},
        **{"norm.count": (), "conv2.weight": (32, 16, 3, 3), "conv2.bias": (32,), "conv3.weight": (32, 32, 3, 3)},
        **{"norm1.count": (), "conv3.bias": (32,), "fc0.weight": (64, 32), "fc1.weight": (64, 64), "fc1.bias": (64,)},
    }
    entries = [Entry(name, shape=shape, streams=(StreamEntry("raw", 0),), crc32=None) for name, shape in shapes.items()]
    text, _ = read_deflated(io.BytesIO(deflate_index(entries)))
    _, fields = json.loads(b"[%b]" % text.partition(b"\0")[0])
    written = [field["s"] if isinstance(field, dict) else field for field in fields]
    assert written == [[16, 3, 3, 3], 3, [], [32, 16, 3, 3], 4, [64, 32], 2]
    assert [entry.shape for entry in parse_index(text)] == list(shapes.values())


def test_any_order_and_every_field_come_back() -> None:
    others = [
        Entry("q", shape=(2, 3), scale="quant_q_scale", axis=1, negative_zero=5, crc32=None),
        Entry("p", shape=(2, 3), scale="another", crc32=None, streams=(StreamEntry("range", 0, (-3, 7)),)),
        Entry("half", "float32", (5,), half=True, crc32=None, streams=(StreamEntry("raw", 10),)),
        Entry("half2", "float64", (5,), half=True, crc32=None, streams=(StreamEntry("exponents", 9),)),
        Entry("empty", "bool", (0, 3), crc32=None, streams=(StreamEntry("raw", 0),)),
        Entry("v", shape=(8, 8), width=4, crc32=None, streams=(StreamEntry("codebook", 2**40, (3,)),)),
        Entry("", shape=(), crc32=None, streams=(StreamEntry("raw", 4),)),
        Entry("ü\0\ud800", shape=(), crc32=None, streams=(StreamEntry("raw", 4),)),
        Entry("tied", shared_with="q"),
    ]
    for seed in range(20):
        entries = [*resnet20(), *others]
        random.Random(seed).shuffle(entries)
        found = inflated(deflate_index(entries))
        assert [entry for entry in found if entry.shared_with is None] == [e for e in entries if e.shared_with is None]
        assert [(entry.name, entry.shared_with) for entry in found] == [(e.name, e.shared_with) for e in entries]


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["a"],
        ["a.0", "a.1", "a.3", "a.5", "a.007", "a.08"],
        [f"block{i}.{j}.w{k}" for i in range(12) for j in range(3) for k in range(2)],
        ["9" * 30, "9" * 29 + "8", "1", "2"],
    ],
)
def test_names_come_back(names: list[str]) -> None:
    assert restore_names(shorten_names(names)) == names


@pytest.mark.parametrize(
    ("names", "items"),
    [
        (["a0.w", "a0.b", "a1.w", "a1.b"], ["a0.w", "a0.b", [2, 2, 0, 1]]),
        (["a0.w", "a1.w"], ["a0.w", "a1.w"]),
        (["a5.w", "a5.b", "a2.w", "a2.b"], ["a5.w", "a5.b", "a2.w", "a2.b"]),
        (["b2.7.w", "b2.7.b", "b2.9.w", "b2.9.b"], ["b2.7.w", "b2.7.b", [2, 2, 1, 2]]),
    ],
)
def test_runs_of_two_names_are_copies(names: list[str], items: list[object]) -> None:
    assert shorten_names(names) == items


def test_names_that_grow_without_end() -> None:
    with pytest.raises(ValueError, match="longer than those of any model"):
        restore_names(["a" * 10_000 + "0", [1, 2**31 - 1, 0, 1]])


@pytest.mark.parametrize(
    "items", [3, [[1, 1, 0, 1]], ["a", [1, 1, 0, 1]], ["a0", [2, 1, 0, 1]], ["a0", [1, 1, 0]], ["a0", None]]
)
def test_names_that_are_damaged(items: object) -> None:
    with pytest.raises(ValueError, match=r"name|must be an integer"):
        restore_names(items)


def test_lengths_come_back() -> None:
    rng = random.Random(0)
    for _ in range(50):
        kinds = [rng.choice("abc") for _ in range(rng.randrange(20))]
        lengths = [rng.randrange(2 ** rng.randrange(1, 40)) * rng.choice([1, 4]) for _ in kinds]
        packed = pack_lengths(kinds, lengths)
        assert unpack_lengths(kinds, packed) == lengths
        if kinds:
            with pytest.raises(ValueError, match="the lengths of the index are damaged"):
                unpack_lengths(kinds, packed + b"\0")


def test_an_index_that_inflates_without_end() -> None:
    with pytest.raises(ValueError, match="inflates to more than that of any model"):
        read_deflated(io.BytesIO(deflate_text(b" " * 2**26)))
