"""Whatever a file contains, reading it gives tensors with the right checksums, or one sentence."""

from __future__ import annotations

import copy
import random
import re
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_compress.packing.reader import load_packed
from lightning_compress.packing.writer import save_packed
from tests.packing.hostile import Index, closed, mutated, opened
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


def test_every_way_of_packing_is_among_them(sound: bytes) -> None:
    _, index, _ = opened(sound)
    kinds = {word for entry in index for stream in entry["streams"] for word in stream if isinstance(word, str)}
    expected = {"raw", "split", "bitmask", "gaps", "columns", "codebook", "blocks", "range", "indices", "symbols"}
    assert kinds == expected | {"ans", "bits"}
    assert any("width" in entry for entry in index)


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
        start = time.process_time()
        try:
            result = read(data, path, into)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: "), (seed, error)
            assert str(error).endswith("."), (seed, error)
            assert len(str(error)) < 1000, (seed, error)
            assert {name: bits(tensor) for name, tensor in model.state_dict().items()} == before, seed
        except BaseException as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
        else:
            found = result if into is None else result.state_dict()
            if into is not None:
                assert {name: bits(tensor) for name, tensor in found.items()} == expected, seed
                model.load_state_dict(zeros)
        assert time.process_time() - start < 3, seed
    return refused


def test_five_hundred_damaged_files(sound: bytes, tmp_path: Path) -> None:
    assert fuzz(sound, tmp_path / "file", seeds=range(500)) > 400


@pytest.mark.slow
def test_many_damaged_files(sound: bytes, tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert fuzz(sound, tmp_path / "file", seeds=range(1_000, 16_000)) > 12_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000
