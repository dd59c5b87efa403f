"""The file: a safetensors file of one tensor of bytes, with an index of what is in them in its header.

An index in JSON of a hundred small tensors would be longer than they are, hence deflated; entries of safetensors'
own would be too.
"""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from lightning_compress.packing.entry import Entry

VERSION = "1"
FORMAT = "lightning_compress.packed"
_MOST_HEADER = 2**27
_DEFLATED = 64  # times that an index may grow; those of real models grow 5 to 20 times
_LENGTH = 8


def header_of(entries: Sequence[Entry], num_bytes: int) -> bytes:
    """What is before the bytes of the tensors."""
    index = json.dumps([entry.to_json() for entry in entries], separators=(",", ":")).encode()
    # Of base 85's characters JSON escapes none.
    text = base64.b85encode(zlib.compress(index, 9)).decode()
    metadata = {"format": FORMAT, "version": VERSION, "index": text}
    packed = {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}
    header = json.dumps({"__metadata__": metadata, "packed": packed}, separators=(",", ":")).encode()
    return len(header).to_bytes(_LENGTH, "little") + header


def write_container(path: Path, header: bytes, payload: IO[bytes]) -> None:
    """Writes a file from its header and a file of what comes after it."""
    with path.open("wb") as file:
        file.write(header)
        payload.seek(0)
        shutil.copyfileobj(payload, file, 2**20)


def read_index(file: IO[bytes], size: int) -> tuple[list[Entry], int]:
    """The entries of a file of ``size`` bytes, and where the bytes of the first begin.

    Raises:
        ValueError: If it is no such file, or not all of one.
    """
    length = int.from_bytes(file.read(_LENGTH), "little")
    if size < _LENGTH or length > min(size - _LENGTH, _MOST_HEADER):
        raise ValueError("it is no safetensors file, or it is cut within its header")
    header = _parse(file.read(length), "its header")
    num_bytes = size - _LENGTH - length
    packed = {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}
    entries = [Entry.from_json(entry) for entry in _index(header)]
    if header.get("packed") != packed or set(header) != {"__metadata__", "packed"}:
        raise ValueError(f"its header does not describe the {num_bytes} bytes after it; it may be cut")
    if sum(entry.num_bytes for entry in entries) != num_bytes:
        raise ValueError(f"its tensors are not as long as the {num_bytes} bytes that hold them")
    _check_names(entries)
    return entries, _LENGTH + length


def _index(header: Any) -> list[Any]:
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError("it is no packed file of lightning_compress")
    if metadata.get("version") != VERSION:
        raise ValueError(f"it has version {str(metadata.get('version'))[:20]!r}, and version {VERSION!r} can be read")
    index = _parse(_inflated(metadata.get("index")), "its index")
    if not isinstance(index, list):
        raise ValueError("its index is no list")
    return index


def _inflated(text: Any) -> bytes:
    inflate = zlib.decompressobj()
    try:
        deflated = base64.b85decode(text)
        index = inflate.decompress(deflated, 1024 + _DEFLATED * len(deflated))
    except (TypeError, ValueError, zlib.error):
        raise ValueError("its index is damaged") from None
    if not inflate.eof:
        raise ValueError("its index is not whole, or longer than that of any model")
    return index


def _parse(text: bytes, what: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is no JSON ({str(error)[:80]})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name is there twice")
    return found


def _check_names(entries: Sequence[Entry]) -> None:
    """Every name once; what is shared, and what is a scale, is a tensor that refers to no other."""
    by_name = {entry.name: entry for entry in entries}
    if len(by_name) < len(entries):
        raise ValueError("it has two tensors of one name")
    for entry in entries:
        other = entry.same if entry.same is not None else entry.scale
        if other is not None and other not in by_name:
            raise ValueError(f"{entry.name[:200]!r} refers to {other[:200]!r}, which is not there")
        if other is not None and (by_name[other].same is not None or (entry.scale and by_name[other].scale)):
            raise ValueError(f"{entry.name[:200]!r} refers to {other[:200]!r}, which refers to another itself")
