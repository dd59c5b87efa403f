"""Index of a packed file in few bytes.

Tensors are described by their difference to a prediction: the last tensor with the same last parts of its name. Then
whole blocks of a network take the bytes of one number, whereas a hundred descriptions would take more than the tensors
of a small network.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, Any

from lightning_compress.packing.bit_patterns import DTYPES
from lightning_compress.packing.entry import OPTIONAL_KEYS, Entry, StreamEntry
from lightning_compress.packing.entry_parsing import parse_entry
from lightning_compress.packing.length_lists import pack_lengths, unpack_lengths
from lightning_compress.packing.name_lists import restore_names, shorten_names
from lightning_compress.packing.quantized_tensors import scale_name

_SHAPE, _STREAMS, _DTYPE = "s", "k", "d"
_MAX_INFLATION = 64
_CHUNK = 2**16
# Text that indices contain. It is part of the format: a change makes files unreadable.
_DICTIONARY = (
    b'"cls_token","pos_embed","patch_embed.proj.weight","stem.0.weight","features.0.0.weight","blocks.0.norm1.weight",'
    b'"blocks.0.attn.qkv.weight","blocks.0.attn.qkv.bias","blocks.0.attn.proj.weight","blocks.0.mlp.fc1.weight",'
    b'"blocks.0.mlp.fc2.weight","layer2.0.downsample.0.weight","fc.weight","fc.bias","classifier.weight",'
    b'"classifier.bias","head.weight","head.bias"],[{"s":[512],"d":"bfloat16","k":[["codebook",16],["indices","ans"]]},'
    b'{"k":[["columns",1,1],["exponents"]]},{"k":[["gaps",1,"bits"],["raw"]]},{"k":[["codebook",3],["symbols","ans"]]},'
    b'{"s":[128,64,3,3],"k":[["mask"],["sorted"],["indices","ans"]]},{"k":[["range",-8,15],["neighbors",0]]},'
    b'"conv1.weight","bn1.weight","bn1.bias","bn1.running_mean","bn1.running_var","bn1.num_batches_tracked",'
    b'"layer1.0.conv1.weight","layer1.0.conv2.weight","layer1.0.bn1.weight","layer1.0.bn1.bias",'
    b'"layer1.0.bn1.running_mean","layer1.0.bn1.running_var","layer1.0.bn1.num_batches_tracked",[6,6,2,1],[12,24,1,1],'
    b'[36,72,0,1],"linear.weight","linear.bias"],[{"s":[64,3,7,7],"k":[["sorted"],["neighbors",1]]},'
    b'{"s":[16,3,3,3],"k":[["sorted"],["neighbors",0]]},4,{"s":[],"d":"int64"},13,{"k":[["exponents"]]},'
    b'{"k":[["raw"]]},3,{"s":[32,16,3,3]},5,{"s":[64,32,3,3]},2,{"s":[10,64],"k":[["sorted"],["symbols","ans"]]},1]'
)


def deflate_index(entries: Sequence[Entry]) -> bytes:
    """Return the bytes of an index; their end can be told from them."""
    fields: list[Any] = []
    predictor = _Predictor()
    for entry in entries:
        difference = _difference(entry, predictor)
        # Entries without a difference are counted.
        if difference:
            fields.append(difference)
        elif fields and isinstance(fields[-1], int):
            fields[-1] += 1
        else:
            fields.append(1)
    streams = _with_stored_lengths(entries)
    lengths = [stream.num_bytes - _smallest_size(entry) for entry, stream in streams]
    text = json.dumps([shorten_names([entry.name for entry in entries]), fields], separators=(",", ":"))
    return deflate_text(text[1:-1].encode() + b"\0" + pack_lengths([stream.kind for _, stream in streams], lengths))


def deflate_text(text: bytes) -> bytes:
    """Return the deflated text of an index."""
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    return deflate.compress(text) + deflate.flush()


def read_deflated(file: IO[bytes]) -> tuple[bytes, bytes]:
    """Return the text of an index and its deflated bytes, from a file that continues with them.

    Raises:
        ValueError: If it is damaged.
    """
    inflate, text, deflated = zlib.decompressobj(-15, _DICTIONARY), b"", b""
    try:
        while not inflate.eof and (chunk := file.read(_CHUNK)):
            deflated += chunk
            text += inflate.decompress(chunk, 1024 + _MAX_INFLATION * len(deflated) - len(text))
            if inflate.unconsumed_tail:
                break
    except zlib.error:
        raise ValueError("the index is damaged") from None
    if not inflate.eof:
        raise ValueError("the index is truncated, or inflates to more than that of any model")
    return text, deflated[: len(deflated) - len(inflate.unused_data)]


def parse_index(text: bytes) -> list[Entry]:
    """Return the entries of an index, without checksums.

    Raises:
        ValueError: If it is damaged.
    """
    # The escapes of JSON are ASCII, so the first byte of zero ends it.
    written, _, packed = text.partition(b"\0")
    try:
        names, fields = json.loads(b"[%b]" % written)
    except (ValueError, TypeError, RecursionError):
        raise ValueError("the index is damaged") from None
    restored, predictor = restore_names(names), _Predictor()
    entries = [
        _restored(name, difference, predictor)
        for name, difference in zip(restored, _differences(fields, len(restored)), strict=True)
    ]
    lengths = iter(unpack_lengths([stream.kind for _, stream in _with_stored_lengths(entries)], packed))
    return [_with_lengths(entry, lengths) for entry in entries]


class _Predictor:
    """Description of a tensor by those before it."""

    def __init__(self) -> None:
        self._last: dict[str, dict[str, Any]] = {}
        self._matrix: list[int] = []
        self._shape: list[int] = [0]

    def predict(self, name: str) -> dict[str, Any]:
        """Return the predicted shape, streams and dtype of a tensor."""
        last = self._last.get(_role(name), {_SHAPE: [0], _STREAMS: [["raw"]], _DTYPE: "float32"})
        # Vectors belong to the outputs of the layer before, which are the inputs of the next.
        outputs = self._matrix[:1]
        shape = last[_SHAPE]
        if len(shape) == 1:
            shape = self._shape[:1] or outputs or shape
        elif len(shape) > 1:
            shape = [*outputs, *outputs, *self._matrix[2:]]
        return {**last, _SHAPE: shape}

    def update(self, name: str, described: dict[str, Any]) -> None:
        """Take note of the description of a tensor."""
        self._last[_role(name)] = described
        self._shape = described[_SHAPE]
        if len(described[_SHAPE]) > 1:
            self._matrix = described[_SHAPE]


def _role(name: str) -> str:
    """Return the last two parts of a name, without numbers.

    >>> _role("layer1.0.bn2.running_mean")
    'bn.running_mean'
    """
    return ".".join(part.rstrip("0123456789") for part in name.split(".")[-2:])


def _difference(entry: Entry, predictor: _Predictor) -> dict[str, Any]:
    if entry.shared_with is not None:
        return {"same": entry.shared_with}
    kinds = [[stream.kind, *stream.parameters] for stream in entry.streams]
    described = {_SHAPE: list(entry.shape), _STREAMS: kinds, _DTYPE: entry.dtype}
    predicted = predictor.predict(entry.name)
    predictor.update(entry.name, described)
    written = entry.to_json()
    optional = {key: written[key] for key in OPTIONAL_KEYS if key in written}
    if optional.get("scale") == scale_name(entry.name):
        optional["scale"] = True
    return {key: value for key, value in described.items() if value != predicted[key]} | optional


def _differences(fields: Any, num_entries: int) -> Iterator[dict[str, Any]]:
    if not isinstance(fields, list):
        raise ValueError("the fields of the index must be a list")
    done = 0
    for item in fields:
        count = 1 if isinstance(item, dict) else _checked_count(item)
        done += count
        if done > num_entries:
            break
        for _ in range(count):
            yield item if isinstance(item, dict) else {}
    if done != num_entries:
        raise ValueError("the index does not have the fields of all tensors")


def _checked_count(item: Any) -> int:
    if isinstance(item, bool) or not isinstance(item, int) or item < 1:
        raise ValueError("the fields of a tensor must be an object or a count")
    return item


def _restored(name: str, difference: dict[str, Any], predictor: _Predictor) -> Entry:
    """Return an entry with streams of length zero."""
    if set(difference) == {"same"}:
        return parse_entry({"name": name, **difference})
    described = predictor.predict(name) | difference
    shape, kinds, dtype = (described.pop(key) for key in (_SHAPE, _STREAMS, _DTYPE))
    if not isinstance(kinds, list) or not all(isinstance(kind, list) for kind in kinds):
        raise ValueError(f"the entry of {name[:200]!r} is invalid: its streams must be a list of lists")
    streams = [[*kind[:1], 0, *kind[1:]] for kind in kinds]
    # Optional keys are not predicted: a tensor with a scale has one in each block.
    optional = {key: value for key, value in difference.items() if key not in (_SHAPE, _STREAMS, _DTYPE)}
    if optional.get("scale") is True:
        optional["scale"] = scale_name(name)
    entry = parse_entry({"name": name, "dtype": dtype, "shape": shape, "streams": streams, **optional}, sealed=False)
    predictor.update(name, {_SHAPE: shape, _STREAMS: kinds, _DTYPE: dtype})
    return entry


def _fixed_size(entry: Entry) -> int | None:
    """Return the size of an entry that follows from its shape, or ``None`` if the size is stored."""
    kinds = [stream.kind for stream in entry.streams]
    if kinds == ["unchanged"]:
        return 0
    return _num_elements(entry) * _itemsize(entry) if kinds == ["raw"] else None


def _smallest_size(entry: Entry) -> int:
    """Return the smallest length of each stream of an entry, which is subtracted from those that are stored."""
    is_exponents = [stream.kind for stream in entry.streams] == ["exponents"]
    return _num_elements(entry) * (_itemsize(entry) - 1) if is_exponents else 0


def _with_lengths(entry: Entry, lengths: Iterator[int]) -> Entry:
    fixed = _fixed_size(entry)
    sizes = [_smallest_size(entry) + next(lengths) if fixed is None else fixed for _ in entry.streams]
    streams = (replace(stream, num_bytes=size) for stream, size in zip(entry.streams, sizes, strict=True))
    return replace(entry, streams=tuple(streams))


def _with_stored_lengths(entries: Sequence[Entry]) -> list[tuple[Entry, StreamEntry]]:
    return [(entry, stream) for entry in entries if _fixed_size(entry) is None for stream in entry.streams]


def _num_elements(entry: Entry) -> int:
    return math.prod(entry.shape)


def _itemsize(entry: Entry) -> int:
    return DTYPES["float16" if entry.half else entry.dtype].itemsize
