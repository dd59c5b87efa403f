"""Every registered encoding packs its sample, and comes back."""

from __future__ import annotations

import importlib
import math
import pkgutil
import typing
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from lightning_compress import packing
from lightning_compress.packing import gaps, group_entries, tensor_encoder
from lightning_compress.packing.bit_masks import BIT_MASK
from lightning_compress.packing.bit_patterns import Mask
from lightning_compress.packing.encoding_types import PositionEncoding
from lightning_compress.packing.encodings import (
    CODEBOOKS,
    DELTAS,
    ENCODINGS,
    INTEGER_CODEBOOKS,
    POSITIONS,
    SUPERSEDED,
    VALUES,
    Encoding,
)
from lightning_compress.packing.fixed_width import FIXED_WIDTH
from lightning_compress.packing.index_streams import INDEX_ENCODINGS
from lightning_compress.packing.packed_file import PackedFile
from lightning_compress.packing.reader import load_packed
from lightning_compress.packing.streams import EncodingPlan, Stream
from lightning_compress.packing.symbol_coders import SYMBOL_CODERS
from lightning_compress.packing.writer import save_packed
from tests.packing.hostile import as_version_2, closed, kinds_in, opened
from tests.packing.samples import SAMPLES, Random, bits, clustered_channels, sparse, state

Pack = Callable[..., PackedFile]

OLD_FILE = Path(__file__).with_name("format_version_1.bin")


def test_every_encoding_is_listed_and_has_a_sample() -> None:
    found = {
        value.kind
        for info in pkgutil.iter_modules(packing.__path__, "lightning_compress.packing.")
        for value in vars(importlib.import_module(info.name)).values()
        if isinstance(value, typing.get_args(Encoding))
    }
    assert found == set(ENCODINGS), f"list in packing/encodings.py: {found - set(ENCODINGS)}"
    missing = set(ENCODINGS) - set(SAMPLES) - {encoding.kind for encoding in (*SUPERSEDED, *DELTAS)}
    assert not missing, f"add a sample to tests/packing/samples.py for {missing}"
    assert set(SAMPLES) < set(ENCODINGS)


@pytest.mark.parametrize("kind", SAMPLES)
def test_round_trip_of_the_sample(kind: str, packed: Pack) -> None:
    file = packed(**SAMPLES[kind](Random()))
    assert kind in kinds_in(file.path.read_bytes())
    assert ENCODINGS[kind].label in " ".join(tensor.encoding for tensor in file.tensors)


def test_every_kind_and_every_label_is_that_of_one_encoding() -> None:
    families = (POSITIONS, VALUES, CODEBOOKS, INTEGER_CODEBOOKS, INDEX_ENCODINGS, SYMBOL_CODERS, DELTAS, SUPERSEDED)
    encodings = {id(encoding): encoding for family in families for encoding in family}.values()
    assert len({encoding.kind for encoding in encodings}) == len(encodings) == len(ENCODINGS)
    labels = [encoding.label for encoding in encodings if encoding.label]
    assert len(set(labels)) == len(labels)


def test_a_file_of_the_first_version_can_be_read() -> None:
    """The reader verifies every bit; kinds in files must keep their names and meaning."""
    assert kinds_in(OLD_FILE.read_bytes()) == {
        *("raw", "split", "bitmask", "gaps", "columns", "codebook", "blocks", "range", "indices", "symbols"),
        *("ans", "bits"),
    }
    tensors = load_packed(OLD_FILE)
    assert {"sparse", "clustered", "vectors", "q.weight"} <= set(tensors)


def test_files_of_all_versions_have_the_same_tensors(tmp_path: Path) -> None:
    path = save_packed(state(), tmp_path / "file").path
    second = as_version_2(path.read_bytes())
    (tmp_path / "second").write_bytes(second)
    header, index, payload = opened(second)
    del header["__metadata__"]["crc32"]
    header["__metadata__"]["version"] = "1"
    (tmp_path / "first").write_bytes(closed(header, index, payload))
    found = [load_packed(path), load_packed(tmp_path / "first"), load_packed(tmp_path / "second")]
    first, *others = ({name: bits(tensor) for name, tensor in tensors.items()} for tensors in found)
    assert all(other == first for other in others)


@pytest.mark.parametrize("coder", [BIT_MASK.read, lambda stream, shape: FIXED_WIDTH.decode(stream.data, *shape, 2)])
def test_a_set_bit_of_padding_is_an_error(coder: Callable[[Stream, tuple[int, ...]], object]) -> None:
    coder(Stream("", bytes([0b00011111])), (5,))
    with pytest.raises(ValueError, match="padding bits"):
        coder(Stream("", bytes([0b00111111])), (5,))


@pytest.mark.parametrize("module", [gaps, group_entries])
def test_the_size_of_chunks_does_not_matter(module: ModuleType, packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 7)
    packed(**sparse(Random()), **clustered_channels(Random()))


def test_an_encoding_is_used_once_it_is_registered(packed: Pack, monkeypatch: pytest.MonkeyPatch) -> None:
    """A toy with the size of nothing: the first half of the elements is not zero."""

    def plan(nonzero: Mask, shape: tuple[int, ...]) -> EncodingPlan | None:
        half = np.arange(len(nonzero)) < len(nonzero) // 2
        return EncodingPlan(-100.0, lambda: [Stream("toy", b"")]) if (half == nonzero).all() else None

    def read(stream: Stream, shape: tuple[int, ...]) -> Mask:
        size = math.prod(shape)
        return np.arange(size) < size // 2

    toy = PositionEncoding(kind="toy", label="first half", plan=plan, read=read)
    monkeypatch.setitem(ENCODINGS, "toy", toy)
    monkeypatch.setattr(tensor_encoder, "POSITIONS", (*POSITIONS, toy))
    weight = torch.randn(64, 64)
    weight[32:] = 0.0
    file = packed(weight, torch.eye(8))
    assert ["first half" in tensor.encoding for tensor in file.tensors] == [True, False]
    assert "toy" in kinds_in(file.path.read_bytes())
