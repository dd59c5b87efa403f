"""Reading a packed file: PyTorch, NumPy and constriction are all that it needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TypeVar, overload

import torch
from torch import Tensor, nn

from lightning_compress.packing.bit_patterns import checksum
from lightning_compress.packing.container import read_index
from lightning_compress.packing.decoding import decode
from lightning_compress.packing.entry import Entry
from lightning_compress.packing.progress_bar import track
from lightning_compress.packing.streams import Stream
from lightning_compress.packing.validation import check_match, keys_of_model

Module = TypeVar("Module", bound=nn.Module)

_SLACK = 2**26  # bytes that any file may declare
_EXPANSION = 1024  # times its size that a file may declare: 99.9 % zeros in one bit per nonzero are no more


@overload
def load_packed(
    path: str | Path, into: None = None, *, device: torch.device | str | None = None, progress: bool = False
) -> dict[str, Tensor]: ...
@overload
def load_packed(
    path: str | Path, into: Module, *, device: torch.device | str | None = None, progress: bool = False
) -> Module: ...
def load_packed(
    path: str | Path, into: nn.Module | None = None, *, device: torch.device | str | None = None, progress: bool = False
) -> nn.Module | dict[str, Tensor]:
    """Reads what :func:`save_packed` wrote, each tensor checked against its checksum.

    Args:
        path: The file; nothing in it is run, and it may come from anyone.
        into: A model of the class that was saved, on any device and of any type; it gets all tensors, or if anything
            is wrong none. Without it the result is a state dict.
        device: Where the tensors of a state dict are put, a GPU for example; those of a model are where it is.
        progress: Whether to show a progress bar.

    Returns:
        The model, or the state dict.

    Raises:
        ValueError: If the file is cut, damaged or of another kind, if it declares much more than a file of its size
            can hold (a model that has these shapes lifts the limit), or if its names and shapes are not the model's.

    >>> import tempfile
    >>> from lightning_compress.packing.writer import save_packed
    >>> net = nn.Linear(3, 2)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = save_packed(net, f"{folder}/model.packed")
    ...     torch.equal(load_packed(f"{folder}/model.packed")["weight"], net.weight)
    True
    """
    with Path(path).open("rb") as file, _naming(path):
        size = os.fstat(file.fileno()).st_size
        entries, begin = read_index(file, size)
        if into is None:
            _check_proportion(entries, size)
            return _read_all(file, entries, begin, torch.device("cpu" if device is None else device), progress)
        check_match(entries, into)
        state = _read_all(file, entries, begin, torch.device("cpu"), progress)
    _assign(into, state, path)
    return into


class _naming:
    """Begins the sentence of a ``ValueError`` with the file's name."""

    def __init__(self, path: str | Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, ValueError):
            raise ValueError(f"{self.path}: {error}.") from error


def _check_proportion(entries: Sequence[Entry], size: int) -> None:
    declared = sum(entry.num_dense_bytes for entry in entries if entry.same is None)
    if declared > max(_SLACK, _EXPANSION * size):
        raise ValueError(
            f"its {size} bytes declare tensors of {declared} bytes; if that is right, give the model that has them as "
            "into="
        )


def _read_all(
    file: IO[bytes], entries: Sequence[Entry], begin: int, device: torch.device, progress: bool
) -> dict[str, Tensor]:
    offsets = dict(zip((entry.name for entry in entries), _offsets(entries, begin), strict=True))
    by_name = {entry.name: entry for entry in entries}
    read: dict[str, Tensor] = {}

    def get(name: str) -> Tensor:
        entry = by_name[name]
        if entry.same is not None:
            return get(entry.same)
        if name not in read:
            file.seek(offsets[name])
            read[name] = _read_one(file, entry, get).to(device)
        return read[name]

    return {name: get(name) for name in track(by_name, "unpacking", shown=progress)}


def _offsets(entries: Sequence[Entry], begin: int) -> Iterator[int]:
    for entry in entries:
        yield begin
        begin += entry.num_bytes


def _read_one(file: IO[bytes], entry: Entry, scale: Callable[[str], Tensor]) -> Tensor:
    streams = [Stream(part.kind, file.read(part.num_bytes), part.parameters) for part in entry.parts]
    try:
        tensor = decode(entry, streams, scale)
    except ValueError as error:
        raise ValueError(f"tensor {entry.name[:200]!r} is damaged: {error}") from None
    if checksum(entry.name, tensor) != entry.crc32:
        raise ValueError(f"tensor {entry.name[:200]!r} is damaged: its checksum is another")
    return tensor


def _assign(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    keys = keys_of_model(model)
    try:
        model.load_state_dict({keys[name]: tensor for name, tensor in state.items()}, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: the model takes no such state dict: {error}") from None
