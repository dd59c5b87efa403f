"""Whatever a file contains, reading it gives tensors with the right checksums, or one sentence."""

from __future__ import annotations

import copy
import random
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.packing.encodings import DELTAS, ENCODINGS, SUPERSEDED
from lightning_compress.packing.reader import load_packed
from lightning_compress.packing.writer import save_packed
from tests.packing.hostile import Index, as_version_2, closed, index_of, kinds_in, mutated, opened
from tests.packing.samples import bits, state


class Holder(nn.Module):
    """A model with the state that it is given, and parents of dotted names."""

    def __init__(self, tensors: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            parent, _, leaf = name.rpartition(".")
            if parent and not hasattr(self, parent):
                self.add_module(parent, nn.Module())
            self.get_submodule(parent).register_buffer(leaf, tensor.clone())


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("sound") / "file"
    save_packed(state(), path)
    return path.read_bytes()


def test_every_encoding_is_among_them(sound: bytes) -> None:
    assert kinds_in(sound) == set(ENCODINGS) - {encoding.kind for encoding in (*SUPERSEDED, *DELTAS)}
    assert any(entry.width > 1 for entry in index_of(sound).entries)


def read(data: bytes, path: Path, into: nn.Module | None = None) -> Any:
    path.write_bytes(data)
    return load_packed(path) if into is None else load_packed(path, into)


def fuzz(sound: bytes, path: Path, *, seeds: range) -> int:
    """Reads damaged files, and returns how many were refused."""
    refused = 0
    read(sound, path)
    expected = {name: bits(tensor) for name, tensor in state().items()}
    zeros = {name: torch.zeros_like(tensor) for name, tensor in state().items()}
    model = Holder(zeros)
    before = {name: bits(tensor) for name, tensor in model.state_dict().items()}
    for seed in seeds:
        data = mutated(sound, random.Random(seed))
        into = model if seed % 2 else None
        sentence = None
        try:
            read(data, path, into)
        except ValueError as error:
            sentence = str(error)
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        found = {name: bits(tensor) for name, tensor in model.state_dict().items()}
        if sentence is None:
            assert found == (before if into is None else expected), seed
            model.load_state_dict(zeros)
        else:
            refused += 1
            assert found == before, seed
            assert re.fullmatch(rf"{re.escape(str(path))}: .{{10,800}}\.", sentence, re.DOTALL), (seed, sentence)
    return refused


def test_five_hundred_damaged_files(sound: bytes, tmp_path: Path) -> None:
    assert fuzz(sound, tmp_path / "file", seeds=range(500)) > 400


@pytest.mark.slow
def test_many_damaged_files(sound: bytes, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fuzz(sound, tmp_path / "file", seeds=range(1_000, 16_000)) > 12_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000


def zeros_of(shape: list[int], *streams: list[Any], **more: Any) -> Index:
    """An index of one tensor of zeros, with the checksum of none."""
    return [{"name": "w", "dtype": "float32", "shape": shape, "crc32": 0, "streams": [*streams]} | more]


def header() -> dict[str, Any]:
    return {"__metadata__": {"format": "lightning_compress.packed", "version": "1", "index": ""}}


@pytest.mark.parametrize(
    ("shape", "streams"),
    [
        ([2**20, 2**20], [["gaps", 0, 0, 1, "ans"], ["raw", 0]]),
        ([2**30], [["codebook", 0, 0], ["indices", 0, "bits"]]),
        ([2**20, 2**16], [["columns", 0, 4, 1], ["raw", 0]]),
        ([2**40, 0, 2**40], [["raw", 0]]),
    ],
)
def test_a_small_file_declares_a_large_tensor(shape: list[int], streams: Any, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=r"declare tensors of \d+ bytes; if that is correct|exceeds the largest"):
        read(closed(header(), zeros_of(shape, *streams), b""), tmp_path / "file")
    with pytest.raises(ValueError, match=r"\(3,\) in the model|exceeds the largest"):
        read(closed(header(), zeros_of(shape, *streams), b""), tmp_path / "file", Holder({"w": torch.zeros(3)}))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def test_a_model_of_that_shape_lifts_the_limit(tmp_path: Path) -> None:
    large = {"w": torch.zeros(2**15, 2**10)}
    path = save_packed(large, tmp_path / "file").path
    with pytest.raises(ValueError, match=r"pass the model that has them as into=\."):
        load_packed(path)
    model = load_packed(path, into=Holder({"w": torch.ones(2**15, 2**10)}))
    assert not model.w.any()


def test_an_index_that_inflates_without_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="inflates to more than that of any model"):
        read(closed(header(), None, b"", text=b" " * 2**26 + b"[]"), tmp_path / "file")


@pytest.mark.parametrize(
    ("dtype", "shape", "streams", "payload"),
    [
        ("float32", [2**11, 2**11], [["gaps", 0, 2**22, 1, "ans"], ["raw", 0]], b""),
        ("uint8", [2**11, 2**11], [["gaps", 0, 2**22, 1, "ans"], ["raw", 0]], b""),
        ("float32", [4, 2**20], [["columns", 4, 4, 1], ["raw", 0]], b"\1\0\0\1"),
        ("float32", [1, 2**22], [["columns", 4, 4, 1], ["raw", 0]], b"\1\0\0\1"),
        ("float32", [2**11, 2**11], [["codebook", 4, 1], ["indices", 0, "ans"]], b"\0\0\0\1"),
        ("float32", [2**11, 2**11], [["blocks", 6, 2**22], ["indices", 0, "ans"]], b"\1\0\0\0\0\1"),
    ],
)
def test_a_small_file_takes_little_memory_before_it_is_refused(
    dtype: str, shape: list[int], streams: Any, payload: bytes, tmp_path: Path
) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="'w' is damaged"):
        read(closed(header(), zeros_of(shape, *streams, dtype=dtype), payload), tmp_path / "file")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000


def test_elements_of_one_byte_count_as_four(tmp_path: Path) -> None:
    index = zeros_of([2**24], ["raw", 0], dtype="bool")
    with pytest.raises(ValueError, match=r"declare tensors of 16777216 bytes; if that is correct"):
        read(closed(header(), index, b""), tmp_path / "file")


def dropped(index: Index) -> None:
    index[-2:] = [{**index[-1], "streams": [*index[-2]["streams"], *index[-1]["streams"]]}]


def aliased(index: Index) -> None:
    index[-2:] = [
        {**index[-2], "streams": index[-2]["streams"]},
        {"name": index[-1]["name"], "same": index[-2]["name"]},
    ]


def reordered(index: Index) -> None:
    index[0], index[1] = index[1], index[0]


@pytest.mark.parametrize("change", [dropped, aliased, reordered])
def test_a_changed_index_is_seen(change: Callable[[Index], None], sound: bytes, tmp_path: Path) -> None:
    header, index, payload = opened(as_version_2(sound))
    checksum = header["__metadata__"]["crc32"]
    change(index)
    data = closed(header, index, payload)
    with pytest.raises(ValueError, match="the index is damaged: its checksum does not match"):
        read(data.replace(header["__metadata__"]["crc32"].encode(), checksum.encode()), tmp_path / "file")


def test_every_flipped_bit_of_a_header_is_seen(tmp_path: Path) -> None:
    path = save_packed({"w": torch.ones(3), "v": torch.zeros(2)}, tmp_path / "file").path
    sound, expected = path.read_bytes(), {name: bits(tensor) for name, tensor in load_packed(path).items()}
    for place in range(8 * index_of(sound).begin):
        changed = bytearray(sound)
        changed[place // 8] ^= 1 << place % 8
        try:
            found = read(bytes(changed), tmp_path / "changed")
        except ValueError:
            continue
        assert {name: bits(tensor) for name, tensor in found.items()} == expected, place


def downgraded(header: Any, index: Any) -> None:
    header["__metadata__"]["version"] = "1"


def unsealed(header: Any, index: Any) -> None:
    del header["__metadata__"]["crc32"]


def renamed(header: Any, index: Any) -> None:
    index[1]["name"] = index[0]["name"]


def versioned(header: Any, index: Any) -> None:
    header["__metadata__"]["version"] = "4"


def foreign(header: Any, index: Any) -> None:
    del header["__metadata__"]["format"]


def looped(header: Any, index: Any) -> None:
    index[1]["streams"][-1][1] += sum(num_bytes for _, num_bytes, *_ in index[0]["streams"])
    index[0] = {"name": "dense", "same": "dense"}


def scaled(header: Any, index: Any) -> None:
    next(entry for entry in index if "scale" in entry)["scale"] = "nothing"


def circular(header: Any, index: Any) -> None:
    entry = next(entry for entry in index if "scale" in entry)
    entry["scale"] = entry["name"]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (renamed, "two tensors have the same name"),
        (versioned, "version '4' of the format is not supported, only '1', '2' and '3'"),
        (downgraded, "the header does not have the keys of version '1'"),
        (unsealed, "the header does not have the keys of version '2'"),
        (foreign, "not a packed file of lightning_compress"),
        (looped, "'dense' refers to 'dense', which refers to another tensor"),
        (scaled, "'q.weight' refers to 'nothing', which the file does not contain"),
        (circular, "'q.weight' refers to 'q.weight', which refers to another tensor"),
    ],
)
def test_a_header_that_is_wrong(
    change: Callable[[Any, Any], None], sentence: str, sound: bytes, tmp_path: Path
) -> None:
    header, index, payload = copy.deepcopy(opened(as_version_2(sound)))
    change(header, index)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        read(closed(header, index, payload), tmp_path / "file")


def test_a_name_that_is_in_the_header_twice(sound: bytes, tmp_path: Path) -> None:
    length = int.from_bytes(sound[:8], "little")
    text = sound[8 : 8 + length].replace(b'{"format"', b'{"version":"1","format"')
    with pytest.raises(ValueError, match=r"the header is not valid JSON \(duplicate key"):
        read(len(text).to_bytes(8, "little") + text + sound[8 + length :], tmp_path / "file")


def test_a_header_with_another_size(sound: bytes, tmp_path: Path) -> None:
    length = int.from_bytes(sound[:8], "little")
    text = sound[8 : 8 + length].replace(b'"data_offsets":[0,', b'"data_offsets":[1,')
    with pytest.raises(ValueError, match=r"the header does not describe the \d+ bytes after it"):
        read(len(text).to_bytes(8, "little") + text + sound[8 + length :], tmp_path / "file")


def test_a_header_that_is_nested_without_end(tmp_path: Path) -> None:
    text = b"[" * 100_000
    with pytest.raises(ValueError, match="the header is not valid JSON"):
        read(len(text).to_bytes(8, "little") + text, tmp_path / "file")


@pytest.mark.parametrize("size", [0, 3, 8, 100, -1, -1000])
def test_a_file_that_is_cut(sound: bytes, size: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="truncated"):
        read(sound[:size], tmp_path / "file")


def test_every_flipped_bit_of_a_payload_is_seen(tmp_path: Path) -> None:
    path = save_packed({"w": torch.tensor([0.0, 1.0, 0.0, 2.0, 1.0] * 20)}, tmp_path / "file").path
    sound = path.read_bytes()
    for place in range(index_of(sound).begin, len(sound)):
        for bit in range(8):
            changed = bytearray(sound)
            changed[place] ^= 1 << bit
            with pytest.raises(ValueError, match="tensor 'w' is damaged"):
                read(bytes(changed), tmp_path / "changed")


def test_an_index_beyond_its_codebook(tmp_path: Path) -> None:
    streams = [["codebook", 12, 3], ["indices", 1, "bits"]]
    payload = torch.tensor([1.0, 2.0, 3.0]).numpy().tobytes() + b"\xff"
    with pytest.raises(ValueError, match="'w' is damaged: a symbol must be below 3, the number of values, but is 3"):
        read(closed(header(), zeros_of([4], *streams), payload), tmp_path / "file")


def test_positions_beyond_the_end(tmp_path: Path) -> None:
    streams = [["gaps", 2, 2, 15, "bits"], ["raw", 8]]
    payload = b"\x71" + b"\0" * 8  # one zero and a value, seven zeros and a value
    sound = closed(header(), zeros_of([10], ["gaps", 1, 2, 15, "bits"], ["raw", 8]), payload)
    with pytest.raises(ValueError, match="'w' is damaged: its checksum does not match"):
        read(sound, tmp_path / "file")
    with pytest.raises(ValueError, match="'w' is damaged: positions exceed the 9 elements"):
        read(closed(header(), zeros_of([9], ["gaps", 1, 2, 15, "bits"], ["raw", 8]), payload), tmp_path / "file")
    with pytest.raises(ValueError, match="'w' is damaged: 2 bytes cannot hold 2 symbols of 4 bits"):
        read(closed(header(), zeros_of([10], *streams), payload + b"\0"), tmp_path / "file")


def test_an_index_beyond_the_codebook_of_its_block(tmp_path: Path) -> None:
    codebooks = torch.tensor([1, 2], dtype=torch.int16).numpy().tobytes() + torch.ones(3).numpy().tobytes()
    streams = [["blocks", len(codebooks), 2], ["indices", 1, "bits"]]
    with pytest.raises(ValueError, match="'w' is damaged: its checksum does not match"):
        read(closed(header(), zeros_of([4], *streams), codebooks + b"\x0c"), tmp_path / "file")
    with pytest.raises(ValueError, match="'w' is damaged: an index is beyond the codebook of its group"):
        read(closed(header(), zeros_of([4], *streams), codebooks + b"\x01"), tmp_path / "file")
