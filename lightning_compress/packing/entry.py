"""Description of one tensor in the header of a packed file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_compress.packing.bit_patterns import DTYPES
from lightning_compress.packing.streams import Parameter

# Keys of an entry in the header, in their order, with the defaults of those that may be missing.
REQUIRED_KEYS = ("name", "dtype", "shape", "crc32", "streams")
OPTIONAL_KEYS: dict[str, Any] = {"width": 1, "half": False, "scale": None, "axis": 0, "minus": None}


@dataclass(frozen=True)
class StreamEntry:
    """Description of one stream.

    Attributes:
        kind: Kind of the encoding that reads it.
        num_bytes: Length in bytes.
        parameters: Integers and strings that the encoding needs to read the bytes.
    """

    kind: str
    num_bytes: int
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class Entry:
    """Description of one tensor.

    Attributes:
        name: Name in the state dict.
        dtype: Name of its dtype.
        shape: Its shape.
        crc32: Checksum of its name, dtype, shape and little-endian bytes; ``None`` if the file has one for all
            tensors.
        streams: Its streams, in the order of the file.
        width: Number of elements per codebook entry.
        half: True if it was rounded to float16.
        scale: Name of the tensor with its scale, if it is stored as integers.
        axis: Dimension of the tensor to which the scale belongs.
        negative_zero: Integer that stands for -0.0.
        shared_with: Name of another tensor with the same memory; then the other attributes have no meaning.
    """

    name: str
    dtype: str = "float32"
    shape: tuple[int, ...] = ()
    crc32: int | None = 0
    streams: tuple[StreamEntry, ...] = ()
    width: int = 1
    half: bool = False
    scale: str | None = None
    axis: int = 0
    negative_zero: int | None = None
    shared_with: str | None = None

    @property
    def num_bytes(self) -> int:
        """Size in the file in bytes."""
        return sum(stream.num_bytes for stream in self.streams)

    @property
    def num_dense_bytes(self) -> int:
        """Size in memory in bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def to_json(self) -> dict[str, Any]:
        """Return the data that :func:`parse_entry` reads, without defaults."""
        if self.shared_with is not None:
            return {"name": self.name, "same": self.shared_with}
        streams = [[stream.kind, stream.num_bytes, *stream.parameters] for stream in self.streams]
        required = (self.name, self.dtype, list(self.shape), self.crc32, streams)
        optional = (self.width, self.half, self.scale, self.axis, self.negative_zero)
        given = {key: value for key, value in zip(OPTIONAL_KEYS, optional, strict=True) if value != OPTIONAL_KEYS[key]}
        return dict(zip(REQUIRED_KEYS, required, strict=True)) | given
