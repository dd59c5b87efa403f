from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from lightning_compress.packing.packed_file import PackedFile
from lightning_compress.packing.reader import load_packed
from lightning_compress.packing.writer import save_packed
from tests.packing.samples import bits


@pytest.fixture
def packed(tmp_path: Path) -> Callable[..., PackedFile]:
    """Packs tensors, checks that every bit comes back, and returns what is said of the file."""

    def pack(*tensors: Tensor, **named: Tensor) -> PackedFile:
        state = {f"t{i}": tensor for i, tensor in enumerate(tensors)} | named
        before = {name: bits(tensor) for name, tensor in state.items()}
        file = save_packed(state, tmp_path / "file")
        assert file.num_bytes == file.path.stat().st_size == sum(item.num_bytes for item in file.items)
        assert {name: bits(tensor) for name, tensor in state.items()} == before
        assert {name: bits(tensor) for name, tensor in load_packed(file.path).items()} == before
        return file

    return pack
