"""Container of a packed file: a safetensors file with one tensor of bytes.

The bytes begin with a deflated index of the tensors that they hold. As entries of safetensors, the descriptions of a
hundred small tensors would take more bytes than the tensors themselves.
"""

from __future__ import annotations

import base64
import json
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lightning_compress.packing.compact_index import deflate_index, parse_index, read_deflated
from lightning_compress.packing.entry import Entry
from lightning_compress.packing.entry_parsing import parse_entry

VERSION = "3"
FORMAT = "lightning_compress.packed"
# Metadata of each version that can be read. The first two have the index there, and the first one no checksum of it.
_KEYS = {
    "1": {"format", "version", "index"},
    "2": {"format", "version", "crc32", "index"},
    "3": {"format", "version"},
}
_OPTIONAL_KEYS = {"3": {"base"}}
_MAX_HEADER_BYTES = 2**27
# A few bytes can inflate to gigabytes. Indices of real models grow 5 to 20 times.
_MAX_INFLATION = 64
_LENGTH_BYTES = 8  # of the length of the header, at the beginning of a safetensors file
_CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class FileIndex:
    """Index of a packed file.

    Attributes:
        entries: Descriptions of the tensors.
        begin: Offset of the bytes of the first tensor.
        crc32: Checksum of the checksums of all tensors; ``None`` if each entry has its own.
        base: Checksum of the tensors of the file to which this one is a difference, eight hexadecimal digits.
    """

    entries: list[Entry]
    begin: int
    crc32: int | None
    base: str | None = None

    @property
    def content(self) -> str:
        """Checksum of all tensors, eight hexadecimal digits."""
        return f"{_combined_checksum_of(self.entries) if self.crc32 is None else self.crc32:08x}"


def header_of(entries: Sequence[Entry], num_bytes: int, base: str | None = None) -> bytes:
    """Return the bytes of a file up to the first tensor, with ``num_bytes`` bytes of tensors to follow."""
    return seal_index(_combined_checksum_of(entries), deflate_index(entries), num_bytes, base)


def _combined_checksum_of(entries: Sequence[Entry]) -> int:
    own = [entry.crc32 for entry in entries if entry.shared_with is None]
    return combined_checksum([checksum for checksum in own if checksum is not None])


def seal_index(crc32: int, deflated: bytes, num_bytes: int, base: str | None = None) -> bytes:
    """Return the bytes of a file up to the first tensor, from the checksum of all tensors and the deflated index."""
    index = crc32.to_bytes(_CHECKSUM_BYTES, "little") + deflated
    # Checksums of tensors do not tell if one is missing or refers to another one's memory.
    index = zlib.crc32(index).to_bytes(_CHECKSUM_BYTES, "little") + index
    metadata = {"format": FORMAT, "version": VERSION} | ({} if base is None else {"base": base})
    header = {"__metadata__": metadata, "packed": _description(len(index) + num_bytes)}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    return len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded + index


def combined_checksum(checksums: Sequence[int]) -> int:
    """Return the CRC-32 of the checksums of all tensors."""
    return zlib.crc32(b"".join(checksum.to_bytes(_CHECKSUM_BYTES, "little") for checksum in checksums))


def write_container(path: Path, header: bytes, payload: IO[bytes]) -> None:
    """Write a header and the contents of another file, from its beginning, to ``path``."""
    with path.open("wb") as file:
        file.write(header)
        payload.seek(0)
        shutil.copyfileobj(payload, file, 2**20)


def read_index(file: IO[bytes], size: int) -> FileIndex:
    """Return the index of a file of ``size`` bytes.

    Raises:
        ValueError: If it is not a packed file, or truncated or damaged.
    """
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if size < _LENGTH_BYTES or length > min(size - _LENGTH_BYTES, _MAX_HEADER_BYTES):
        raise ValueError("not a safetensors file, or truncated within its header")
    header = _parse_json(file.read(length), "header")
    metadata, num_bytes = _checked_metadata(header), size - _LENGTH_BYTES - length
    if header.get("packed") != _description(num_bytes) or set(header) != {"__metadata__", "packed"}:
        raise ValueError(f"the header does not describe the {num_bytes} bytes after it; the file may be truncated")
    begin = _LENGTH_BYTES + length
    index = (
        _parse_metadata_index(metadata, begin)
        if "index" in metadata
        else _read_index(file, begin, metadata.get("base"))
    )
    if sum(entry.num_bytes for entry in index.entries) != size - index.begin:
        raise ValueError(f"the tensors of the index do not add up to the {size - index.begin} bytes after the header")
    _check_names(index.entries)
    return index


def _read_index(file: IO[bytes], begin: int, base: str | None) -> FileIndex:
    seal, crc32 = file.read(_CHECKSUM_BYTES), file.read(_CHECKSUM_BYTES)
    text, deflated = read_deflated(file)
    if int.from_bytes(seal, "little") != zlib.crc32(crc32 + deflated):
        raise ValueError("the index is damaged: its checksum does not match")
    begin += 2 * _CHECKSUM_BYTES + len(deflated)
    return FileIndex(parse_index(text), begin, int.from_bytes(crc32, "little"), base)


def _parse_metadata_index(metadata: dict[str, Any], begin: int) -> FileIndex:
    if "crc32" in metadata and metadata["crc32"] != _checksum(metadata["index"]):
        raise ValueError("the index is damaged: its checksum does not match")
    index = _parse_json(_inflate(metadata["index"]), "index")
    if not isinstance(index, list):
        raise ValueError("the index must be a list")
    return FileIndex([parse_entry(entry) for entry in index], begin, None)


def _description(num_bytes: int) -> dict[str, Any]:
    return {"dtype": "U8", "shape": [num_bytes], "data_offsets": [0, num_bytes]}


def _checked_metadata(header: Any) -> dict[str, Any]:
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != FORMAT:
        raise ValueError("not a packed file of lightning_compress")
    version = str(metadata.get("version"))
    if version not in _KEYS:
        *others, last = map(repr, _KEYS)
        raise ValueError(
            f"version {version[:20]!r} of the format is not supported, only {', '.join(others)} and {last}"
        )
    keys = set(metadata) - _OPTIONAL_KEYS.get(version, set())
    if keys != _KEYS[version] or not all(isinstance(metadata.get(key, ""), str) for key in ("index", "base")):
        raise ValueError(f"the header does not have the keys of version {version!r}")
    return metadata


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


def _inflate(text: str) -> bytes:
    inflate = zlib.decompressobj()
    try:
        deflated = base64.b85decode(text)
        index = inflate.decompress(deflated, 1024 + _MAX_INFLATION * len(deflated))
    except (ValueError, zlib.error):
        raise ValueError("the index is damaged") from None
    if not inflate.eof:
        raise ValueError("the index is incomplete, or inflates to more than that of any model")
    return index


def _parse_json(text: bytes, name: str) -> Any:
    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the {name} is not valid JSON ({str(error)[:80]})") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers differ in which of two equal keys they keep, so one file could mean two things.
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate key")
    return found


def _check_names(entries: Sequence[Entry]) -> None:
    """Check that names are unique and that references to other tensors end after one step."""
    by_name = {entry.name: entry for entry in entries}
    if len(by_name) < len(entries):
        raise ValueError("two tensors have the same name")
    for entry in entries:
        other = entry.shared_with if entry.shared_with is not None else entry.scale
        if other is not None and other not in by_name:
            raise ValueError(f"{entry.name[:200]!r} refers to {other[:200]!r}, which the file does not contain")
        # The reader follows references recursively, so a chain or a cycle could exhaust the stack.
        if other is not None and (by_name[other].shared_with is not None or (entry.scale and by_name[other].scale)):
            raise ValueError(f"{entry.name[:200]!r} refers to {other[:200]!r}, which refers to another tensor")
