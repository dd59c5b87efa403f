"""Reading of packed files; PyTorch, NumPy and constriction are the only packages that it needs."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar, overload

import torch
from torch import Tensor, nn

from lightning_compress.packing.bit_patterns import checksum
from lightning_compress.packing.container import FileIndex, combined_checksum, read_index
from lightning_compress.packing.entry import Entry
from lightning_compress.packing.progress_bar import track
from lightning_compress.packing.streams import Stream
from lightning_compress.packing.tensor_decoder import decode_tensor
from lightning_compress.packing.validation import check_match, keys_of_model

Module = TypeVar("Module", bound=nn.Module)

# A file of a few bytes can declare a tensor of zeros of any size. Real files stay far below this ratio: at a sparsity
# of 99.9 %, FP32 elements with one bit per nonzero element are at a ratio of about 1,000.
_MAX_RATIO = 1024
_ALWAYS_ALLOWED = 2**24  # bytes in memory that a file of any size may declare
_MIN_ITEM_BYTES = 4  # counted for an element of any dtype, because positions and indices take memory and time too


@overload
def load_packed(
    path: str | Path,
    into: None = None,
    *,
    base: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> dict[str, Tensor]: ...
@overload
def load_packed(
    path: str | Path,
    into: Module,
    *,
    base: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Module: ...
def load_packed(
    path: str | Path,
    into: nn.Module | None = None,
    *,
    base: str | Path | None = None,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> nn.Module | dict[str, Tensor]:
    """Read a file that :func:`save_packed` wrote, and verify its checksums.

    Args:
        path: Path of the file. Files from untrusted sources are safe to read: they contain no code, and memory is
            bounded by the size of the file or of the model.
        into: Model of the saved class, on any device and of any dtype. It receives all tensors, or none if an error
            is raised. If ``None``, a state dict is returned.
        base: File that was the ``base`` of :func:`save_packed`, if there was one.
        device: Device of the tensors of the state dict. Tensors of a model stay on its devices.
        progress: If True, show a progress bar.

    Returns:
        ``into``, or a state dict.

    Raises:
        ValueError: If the file is truncated, damaged or not a packed file; if it declares much larger tensors than a
            file of its size can hold (a model with these shapes as ``into`` lifts the limit); if its names or shapes
            differ from those of the model; or if ``base`` is missing or not the file that it was saved against.

    Example:
        >>> import tempfile, torch
        >>> import lightning_compress as lc
        >>> net = torch.nn.Linear(3, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = lc.save_packed(net, f"{folder}/model.packed")
        ...     torch.equal(lc.load_packed(f"{folder}/model.packed")["weight"], net.weight)
        True
    """
    with Path(path).open("rb") as file, _name_file_in_errors(path):
        size = os.fstat(file.fileno()).st_size
        index = read_index(file, size)
        found = _base_of(index, base)
        if into is None:
            _check_ratio(index.entries, size + found.num_bytes)
            return _read_all(file, index, found, torch.device("cpu" if device is None else device), progress)
        check_match(index.entries, into)
        state = _read_all(file, index, found, torch.device("cpu"), progress)
    _assign(into, state, path)
    return into


@contextlib.contextmanager
def _name_file_in_errors(path: str | Path) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}.") from error


def _check_ratio(entries: Sequence[Entry], size: int) -> None:
    own = [entry for entry in entries if entry.shared_with is None]
    declared = sum(entry.num_dense_bytes for entry in own)
    working = _MIN_ITEM_BYTES * sum(math.prod(entry.shape) for entry in own)
    if max(declared, working) > max(_ALWAYS_ALLOWED, _MAX_RATIO * size):
        raise ValueError(
            f"its {size} bytes declare tensors of {declared} bytes; if that is correct, pass the model that has them "
            "as into="
        )


def _base_of(index: FileIndex, path: str | Path | None) -> BaseFile:
    if index.base is None:
        if path is not None:
            raise ValueError("it was saved without a base; load it without base=")
        return NO_BASE
    if path is None:
        raise ValueError("it holds only the differences to another file; pass that file as base=")
    found = read_base(path)
    if found.content != index.base:
        raise ValueError(
            f"it holds the differences to another file than {path}; pass the one that it was saved against"
        )
    return found


def read_base(path: str | Path) -> BaseFile:
    """Return the tensors of a file to which another one is, or will be, a difference.

    Raises:
        ValueError: If it is not a packed file, or a difference itself.
    """
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file, _name_file_in_errors(path):
        index = read_index(file, size)
        if index.base is not None:
            raise ValueError("it holds only the differences to another file, which is the base to use instead")
    return BaseFile(load_packed(path), index.content, size)


@dataclass(frozen=True)
class BaseFile:
    """Packed file to which another one is a difference.

    Attributes:
        tensors: Its tensors.
        content: Checksum of all of them.
        num_bytes: Its size in bytes.
    """

    tensors: Mapping[str, Tensor]
    content: str | None
    num_bytes: int


NO_BASE = BaseFile({}, None, 0)


def _read_all(
    file: IO[bytes], index: FileIndex, base: BaseFile, device: torch.device, progress: bool
) -> dict[str, Tensor]:
    by_name = {entry.name: entry for entry in index.entries}
    offsets = dict(zip(by_name, _offsets(index.entries, index.begin), strict=True))
    read: dict[str, Tensor] = {}
    checksums: dict[str, int] = {}

    # A tensor may need another one that comes later in the file: the scale of its quantizer, or the one whose memory
    # it shares.
    def get(name: str) -> Tensor:
        entry = by_name[name]
        if entry.shared_with is not None:
            return get(entry.shared_with)
        if name not in read:
            file.seek(offsets[name])
            tensor = _read_one(file, entry, get, base.tensors.get(name))
            checksums[name] = _verified_checksum(entry, tensor)
            read[name] = tensor.to(device)
        return read[name]

    state = {name: get(name) for name in track(by_name, "unpacking", shown=progress)}
    in_order = [name for name in by_name if name in checksums]
    if index.crc32 is not None and combined_checksum([checksums[name] for name in in_order]) != index.crc32:
        damaged = f"tensor {in_order[0][:200]!r} is damaged: its" if len(in_order) == 1 else "a tensor is damaged: the"
        raise ValueError(f"{damaged} checksum does not match")
    return state


def _offsets(entries: Sequence[Entry], begin: int) -> Iterator[int]:
    for entry in entries:
        yield begin
        begin += entry.num_bytes


def _read_one(file: IO[bytes], entry: Entry, get_scale: Callable[[str], Tensor], base: Tensor | None) -> Tensor:
    streams = [Stream(stream.kind, file.read(stream.num_bytes), stream.parameters) for stream in entry.streams]
    try:
        return decode_tensor(entry, streams, get_scale, base)
    except ValueError as error:
        raise ValueError(f"tensor {entry.name[:200]!r} is damaged: {error}") from None


def _verified_checksum(entry: Entry, tensor: Tensor) -> int:
    found = checksum(entry.name, tensor)
    if entry.crc32 is not None and found != entry.crc32:
        raise ValueError(f"tensor {entry.name[:200]!r} is damaged: its checksum does not match")
    return found


def _assign(model: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    keys = keys_of_model(model)
    try:
        model.load_state_dict({keys[name]: tensor for name, tensor in state.items()}, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{path}: the model does not accept this state dict: {error}") from None
