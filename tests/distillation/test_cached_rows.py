from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import pytest
import torch

from lightning_compress.distillation.cached_rows import CachedRows
from lightning_compress.distillation.logit_cache import LogitCache
from tests.distillation.test_logit_cache import CLASSES, ROW, Counting, ask, batch, first_values, never

KEY = 2**16 + 2  # of the third row in the second block


def written(folder: Path, *keys: int) -> Path:
    ask(LogitCache(folder), *keys)
    (file,) = folder.iterdir()
    return file


def test_the_layout_of_a_row(tmp_path: Path) -> None:
    file = written(tmp_path, KEY)
    _, inputs = batch(KEY)
    (sample,) = inputs.flatten(1).tolist()
    positions = torch.linspace(0, len(sample) - 1, 16).round().long().tolist()
    contents = struct.pack("<21f", *(sample[p] for p in positions), *first_values(inputs)[0].tolist())
    checksum = zlib.crc32(struct.pack("<q", KEY) + contents)
    row = contents + struct.pack("<IB", checksum, 1)
    assert file.name == f"logits-v2-1-{CLASSES}.bin"
    assert file.read_bytes() == bytes(2 * ROW) + row + bytes((2**16 - 3) * ROW)


def test_every_flipped_bit_is_computed_again(tmp_path: Path) -> None:
    file = written(tmp_path, 0, 1)
    with file.open("r+b") as stream:
        for place in range(8 * ROW):
            stream.seek(ROW + place // 8)
            value = stream.read(1)[0]
            stream.seek(-1, 1)
            stream.write(bytes([value ^ 1 << place % 8]))
            stream.flush()
            teacher = Counting()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                ask(LogitCache(tmp_path), 0, 1, compute=teacher)
            assert len(teacher.seen) == 1, place
            is_incomplete = place >= 8 * (ROW - 1)
            assert len(caught) == (0 if is_incomplete else 1), place
    ask(LogitCache(tmp_path), 0, 1, compute=never)


def test_a_damaged_row_is_said(tmp_path: Path) -> None:
    file = written(tmp_path, 0, 1, 2)
    data = bytearray(file.read_bytes())
    data[3] ^= 1
    data[2 * ROW + 70] ^= 1
    file.write_bytes(data)
    with pytest.warns(UserWarning, match=r"has 2 damaged rows in a batch, which are computed again: check the disk\."):
        ask(LogitCache(tmp_path), 0, 1, 2)


def test_the_row_of_another_key(tmp_path: Path) -> None:
    """Two samples with the same signature: only the key tells them apart."""
    blank = torch.zeros(1, 3, 4, 4)
    cache = LogitCache(tmp_path)
    cache.logits(torch.tensor([0]), blank, lambda x: first_values(x) + 1)
    (file,) = tmp_path.iterdir()
    data = file.read_bytes()
    file.write_bytes((data[:ROW] * 2 + data)[: len(data)])
    with pytest.warns(UserWarning, match="has 1 damaged rows"):
        found = LogitCache(tmp_path).logits(torch.tensor([1]), blank, lambda x: first_values(x) + 2)
    assert torch.equal(found, torch.full((1, CLASSES), 2.0))


def test_files_of_version_1_are_read_and_continued(tmp_path: Path) -> None:
    """Rows as they were written before: signature, logits, and the mark that the row is complete."""
    _, inputs = batch(0, 1)
    positions = torch.linspace(0, 47, 16).round().long()
    rows = [
        struct.pack("<21fB", *inputs[key].flatten()[positions].tolist(), *first_values(inputs)[key].tolist(), 1)
        for key in (0, 1)
    ]
    file = tmp_path / f"logits-0-{CLASSES}.bin"
    file.write_bytes(b"".join(rows))
    ask(LogitCache(tmp_path), 1, 0, compute=never)
    ask(LogitCache(tmp_path), 0, 2)
    ask(LogitCache(tmp_path), 2, 1, 0, compute=never)
    assert list(tmp_path.iterdir()) == [file]
    assert file.read_bytes()[: 2 * 85] == b"".join(rows)
    assert file.stat().st_size == 2**16 * 85
    ask(LogitCache(tmp_path), 2**16)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    "name", ["logits-0-x.bin", "logits-0-5.bin.part", "logits-v3-0-5.bin", "logits-10-5.bin", "notes"]
)
def test_other_files_are_ignored(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("other")
    assert CachedRows.find(tmp_path, 0) is None
    ask(LogitCache(tmp_path), 0)
    assert (tmp_path / name).read_text() == "other"


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / f"logits-v2-0-{CLASSES}.bin").mkdir()
    with pytest.raises(ValueError, match=r"cannot be opened \(Is a directory\): give another directory\."):
        ask(LogitCache(tmp_path), 0)


def test_blocks_with_another_number_of_classes(tmp_path: Path) -> None:
    ask(LogitCache(tmp_path), 0)
    keys, inputs = batch(2**16)
    LogitCache(tmp_path).logits(keys, inputs, lambda x: first_values(x)[:, :3])
    keys, inputs = batch(0, 2**16)
    with pytest.raises(ValueError, match="has 3 classes, the teacher has 5: give another directory"):
        LogitCache(tmp_path).logits(keys, inputs, never)
