"""Files of removal logs: JSON of a fixed schema, which may be damaged or malicious, with a checksum."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, NamedTuple

from lightning_compress.channels.tensor_cut import TensorCut

VERSION = 3
_SECTIONS = {"version", "tensors", "attributes", "transposed"}
# Version 1 has no checksum, and its first files have no list of transposed weights. Version 2 has no blocks; logs
# without blocks are still written in it, for earlier releases.
_KEYS = {
    1: (_SECTIONS - {"transposed"}, _SECTIONS),
    2: (_SECTIONS | {"crc32"},),
    3: (_SECTIONS | {"crc32", "blocks"},),
}
# No model that fits into memory reaches these bounds.
_MAX_SIZE = 2**48
_MAX_DIMENSIONS = 64


class LogContents(NamedTuple):
    """Cuts by tensor, attributes before and after by path, names of weights with transposed channels, and of blocks."""

    cuts: dict[str, TensorCut]
    attributes: dict[str, tuple[int, int]]
    transposed: tuple[str, ...]
    blocks: tuple[str, ...]


def format_log(
    cuts: Mapping[str, TensorCut],
    attributes: Mapping[str, tuple[int, int]],
    transposed: tuple[str, ...],
    blocks: tuple[str, ...] = (),
) -> str:
    """Return the text of a file, which :func:`parse_log` reads."""
    tensors = {
        name: {"shape": cut.shape, "kept": {str(dim): cut.kept[dim] for dim in cut.kept}} for name, cut in cuts.items()
    }
    data = {"version": 2, "tensors": tensors, "attributes": attributes, "transposed": transposed}
    if blocks:
        data |= {"version": VERSION, "blocks": blocks}
    return json.dumps({**data, "crc32": _checksum(data)})


def parse_log(text: str) -> LogContents:
    """Return the contents of a file, in memory bounded by the length of its text.

    Raises:
        ValueError: If the text is not a removal log of a supported version.
    """
    try:
        return _parse(json.loads(text, object_pairs_hook=_without_duplicates))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _parse(data: Any) -> LogContents:
    version = data.get("version") if isinstance(data, dict) else None
    if type(version) is not int or set(data) not in _KEYS.get(version, ()):
        raise ValueError("its version or keys are unknown")
    if version > 1 and data.pop("crc32") != _checksum(data):
        raise ValueError("its checksum does not match its contents")
    cuts = {name: _parse_cut(name, cut) for name, cut in _mapping(data["tensors"]).items()}
    attributes = {path: _parse_attribute(path, pair) for path, pair in _mapping(data["attributes"]).items()}
    transposed = _list(data.get("transposed", []))
    if not all(isinstance(name, str) and name in cuts for name in transposed):
        raise ValueError("a transposed weight is not among its tensors")
    return LogContents(cuts, attributes, tuple(transposed), _parse_blocks(data.get("blocks", [])))


def _checksum(data: Mapping[str, Any]) -> int:
    # Of the sorted contents, not of the text, so that a formatter may rewrite the file.
    return zlib.crc32(json.dumps(data, sort_keys=True).encode())


def _parse_cut(name: str, data: Any) -> TensorCut:
    if not isinstance(data, dict) or set(data) != {"shape", "kept"}:
        raise ValueError(f"{name!r} must have a shape and kept indices")
    shape = tuple(_list(data["shape"]))
    if len(shape) > _MAX_DIMENSIONS or not all(type(size) is int and 0 < size <= _MAX_SIZE for size in shape):
        raise ValueError(f"the shape of {name!r} is invalid")
    dims = {str(dim): dim for dim in range(len(shape))}
    kept = _mapping(data["kept"])
    if not set(kept) <= set(dims):
        raise ValueError(f"{name!r} keeps indices of a dimension that it does not have")
    return TensorCut(shape, {dims[dim]: _parse_kept(name, kept[dim], shape[dims[dim]]) for dim in kept})


def _parse_kept(name: str, data: Any, size: int) -> tuple[int, ...]:
    kept = _list(data)
    # Neighbors are compared instead of a set of all indices below the size, which a few bytes can make huge.
    if not kept or not all(type(index) is int for index in kept) or not 0 <= kept[0] <= kept[-1] < size:
        raise ValueError(f"the kept indices of {name!r} must lie below {size}")
    if any(index >= following for index, following in pairwise(kept)):
        raise ValueError(f"the kept indices of {name!r} must increase")
    return tuple(kept)


def _parse_attribute(path: str, data: Any) -> tuple[int, int]:
    name = path.rpartition(".")[2]
    if not name.isidentifier() or name.startswith("_"):
        raise ValueError(f"removal does not change the attribute {path!r}")
    pair = _list(data)
    if len(pair) != 2 or not all(type(value) is int for value in pair) or not 0 < pair[1] <= pair[0] <= _MAX_SIZE:
        raise ValueError(f"the attribute {path!r} must be a positive integer that does not increase")
    return pair[0], pair[1]


def _parse_blocks(data: Any) -> tuple[str, ...]:
    blocks = _list(data)
    if not all(isinstance(name, str) and all(name.split(".")) for name in blocks) or len({*blocks}) < len(blocks):
        raise ValueError("the blocks must be names of modules, each once")
    ordered = sorted(name + "." for name in blocks)
    if any(inner.startswith(outer) for outer, inner in pairwise(ordered)):
        raise ValueError("a block is inside another")
    return tuple(blocks)


def _mapping(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError("a section is not a mapping")
    return data


def _list(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError("a list is missing")
    return data


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Parsers differ in which of two equal keys they keep, so one file could mean two things.
    if len({key for key, _ in pairs}) < len(pairs):
        raise ValueError("a key occurs twice")
    return dict(pairs)
