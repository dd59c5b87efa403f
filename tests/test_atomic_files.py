"""Atomic replacement of files."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from torch import nn

import lightning_compress as lc
from lightning_compress.atomic_files import atomic_directory, atomic_write


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.bin"
    with atomic_write(target) as partial:
        partial.write_text("complete")
        assert partial.parent == target.parent
        assert partial.suffix == ".bin"
        assert not target.exists()
    assert [path.read_text() for path in target.parent.iterdir()] == ["complete"]


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_an_exception_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "file.bin"
    target.write_text("old")

    def write() -> None:
        with atomic_write(target) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(type(error)):
        write()
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_full_disk_leaves_the_old_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(program: object, file: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch.export, "save", full)
    target = tmp_path / "model.pt2"
    target.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        lc.export_program(nn.Linear(2, 2), target, torch.ones(2, 2))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_half_written_onnx_file_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx

    def half(model: object, path: Path, **options: object) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(onnx, "save", half)
    target = tmp_path / "model.onnx"
    target.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        lc.export_onnx(nn.Linear(2, 2), target, torch.ones(2, 2))
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "new" / "package"
    for content in ("first", "second"):
        with atomic_directory(target) as partial:
            partial.mkdir()
            (partial / content).write_text(content)
        assert [path.name for path in target.iterdir()] == [content]
        assert [path.name for path in target.parent.iterdir()] == ["package"]


@pytest.mark.parametrize("is_begun", [False, True])
def test_an_exception_leaves_the_old_directory(tmp_path: Path, is_begun: bool) -> None:
    target = tmp_path / "package"
    target.mkdir()
    (target / "old").touch()

    def write() -> None:
        with atomic_directory(target) as partial:
            if is_begun:
                partial.mkdir()
                (partial / "half").touch()
            raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"):
        write()
    assert [path.name for path in tmp_path.rglob("*")] == ["package", "old"]
