"""Damaged and malicious packed files, from sound ones."""

from __future__ import annotations

import base64
import io
import json
import random
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_compress.packing.bit_patterns import checksum
from lightning_compress.packing.compact_index import deflate_text, read_deflated
from lightning_compress.packing.container import FileIndex, read_index, seal_index
from lightning_compress.packing.encodings import ENCODINGS
from lightning_compress.packing.reader import load_packed

Index = list[dict[str, Any]]


def index_of(data: bytes) -> FileIndex:
    """Index of a sound file of any version."""
    return read_index(io.BytesIO(data), len(data))


def as_version_2(data: bytes) -> bytes:
    """The same tensors with the index in the header, and a checksum of each."""
    found = index_of(data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file")
        path.write_bytes(data)
        tensors = load_packed(path)
    index = [replace(entry, crc32=checksum(entry.name, tensors[entry.name])).to_json() for entry in found.entries]
    metadata = {"format": "lightning_compress.packed", "version": "2", "crc32": "", "index": ""}
    return closed({"__metadata__": metadata}, index, data[found.begin :])


def opened(data: bytes) -> tuple[dict[str, Any], Index, bytes]:
    """Header, index, and what comes after them, of a file of version 1 or 2."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    return header, json.loads(zlib.decompress(base64.b85decode(header["__metadata__"]["index"]))), data[end:]


def kinds_in(data: bytes) -> set[str]:
    """Kinds of streams and of symbol coders in a file."""
    streams = [stream for entry in index_of(data).entries for stream in entry.streams]
    return {word for stream in streams for word in (stream.kind, *stream.parameters) if isinstance(word, str)}


def closed(header: dict[str, Any], index: object, payload: bytes, *, text: bytes | None = None) -> bytes:
    """A file again, with sizes and, if the header has one, a checksum that fit."""
    text = json.dumps(index).encode() if text is None else text
    metadata = header["__metadata__"]
    metadata["index"] = base64.b85encode(zlib.compress(text)).decode()
    if "crc32" in metadata:
        metadata["crc32"] = f"{zlib.crc32(metadata['index'].encode()):08x}"
    header["packed"] = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + payload


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A file in which something is wrong; now and then nothing is."""
    return rng.choice([_bytes, _bytes, _cut, _spliced, _index, _index, _compact, _compact, _payload])(data, rng)


def _bytes(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _payload(data: bytes, rng: random.Random) -> bytes:
    start = index_of(data).begin
    return data[:start] + _bytes(data[start:], rng)


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def _spliced(data: bytes, rng: random.Random) -> bytes:
    a, b, c = (rng.randrange(len(data)) for _ in range(3))
    length = rng.randrange(64)
    return data[:a] + data[b : b + length] + data[a + rng.choice([0, length]) :] if c % 2 else data[b:] + data[:b]


def _index(data: bytes, rng: random.Random) -> bytes:
    header, index, payload = opened(as_version_2(data))
    changes: list[Callable[[Index, random.Random], None]] = [_value, _value, _swap, _drop, _stream]
    for _ in range(rng.choice([1, 1, 2])):
        rng.choice(changes)(index, rng)
    return closed(header, index, payload)


def _compact(data: bytes, rng: random.Random) -> bytes:
    """Another index of the current version, with the checksum that fits."""
    found = index_of(data)
    file = io.BytesIO(data)
    file.seek(16 + int.from_bytes(data[:8], "little"))
    written, _, lengths = read_deflated(file)[0].partition(b"\0")
    names, fields = json.loads(b"[%b]" % written)
    for _ in range(rng.choice([1, 1, 2])):
        kind = rng.randrange(4)
        if kind == 0:
            lengths = rng.choice([lengths[: rng.randrange(len(lengths))], _bytes(lengths, rng), lengths + b"\1"])
            continue
        items = names if kind == 1 else fields
        place = rng.randrange(len(items))
        if isinstance(items[place], dict) and kind == 2:
            key = rng.choice([*items[place], "s", "k", "d", "width", "half", "scale", "axis", "same"])
            items[place][key] = _strange(rng, items[place].get(key))
        elif isinstance(items[place], list) and kind == 1:
            items[place][rng.randrange(4)] = _strange(rng, 1)
        else:
            items[place] = _strange(rng, items[place])
    text = json.dumps([names, fields])[1:-1].encode() + b"\0" + lengths
    return seal_index(found.crc32 or 0, deflate_text(text), len(data) - found.begin) + data[found.begin :]


def _strange(rng: random.Random, old: object) -> Any:
    number = old if isinstance(old, int) else 3
    return rng.choice(
        [
            *(None, True, -1, 0, 1, 2, 255, 2**16, 2**31, 2**40, 2**63, 10**30, 1.5, "", "x", [], [[]], {}),
            *(number + 1, number - 1, 2 * number, number // 2, float("nan"), "ans", "bits", "weight", "dense"),
        ]
    )


def _value(index: Index, rng: random.Random) -> None:
    entry = rng.choice(index)
    key = rng.choice([*entry, "width", "half", "scale", "axis", "minus", "same", "odd"])
    if isinstance(entry.get(key), list) and entry[key] and rng.random() < 0.8:
        place = rng.randrange(len(entry[key]))
        entry[key][place] = _strange(rng, entry[key][place])
    else:
        entry[key] = _strange(rng, entry.get(key))


def _swap(index: Index, rng: random.Random) -> None:
    a, b = rng.choice(index), rng.choice(index)
    key = rng.choice(["name", "dtype", "shape", "streams", "crc32"])
    if key in a and key in b:
        a[key], b[key] = b[key], a[key]


def _drop(index: Index, rng: random.Random) -> None:
    entry = rng.choice(index)
    if rng.random() < 0.5:
        index.remove(entry)
    elif entry:
        del entry[rng.choice([*entry])]


def _stream(index: Index, rng: random.Random) -> None:
    streams = rng.choice(index).get("streams")
    if not isinstance(streams, list) or not streams or not isinstance(streams[-1], list):
        return
    stream = rng.choice(streams)
    if not isinstance(stream, list) or not stream:
        return
    place = rng.randrange(len(stream))
    stream[place] = rng.choice([*ENCODINGS]) if place == 0 else _strange(rng, stream[place])
