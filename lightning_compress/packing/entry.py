"""What a file's header says of one tensor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_compress.packing.bit_patterns import DTYPES
from lightning_compress.packing.streams import Parameter, whole

_MOST_ELEMENTS = 2**48
_MOST_STREAMS = 8


@dataclass(frozen=True)
class Part:
    """A stream in the header.

    Attributes:
        kind: What it holds.
        num_bytes: How long it is.
        parameters: What is needed to read it.
    """

    kind: str
    num_bytes: int
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A tensor in the header.

    Attributes:
        name: As in the state dict.
        dtype: Name of its type.
        shape: Its shape.
        crc32: Of its name, type and shape and of its bytes, little-endian.
        parts: Its streams, in the order in which they are in the file.
        width: Elements in each entry of a codebook.
        half: Whether it was rounded to float16.
        scale: Name of the tensor that it is a multiple of.
        axis: Which dimension that one belongs to.
        minus: The whole number that stands for -0.0.
        same: Name of the tensor that it shares memory with; then the rest says nothing.
    """

    name: str
    dtype: str = "float32"
    shape: tuple[int, ...] = ()
    crc32: int = 0
    parts: tuple[Part, ...] = ()
    width: int = 1
    half: bool = False
    scale: str | None = None
    axis: int = 0
    minus: int | None = None
    same: str | None = None

    @property
    def num_bytes(self) -> int:
        """What it takes in the file."""
        return sum(part.num_bytes for part in self.parts)

    @property
    def num_dense_bytes(self) -> int:
        """What it takes in memory."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    def to_json(self) -> dict[str, Any]:
        """What :meth:`from_json` reads; defaults are left out."""
        if self.same is not None:
            return {"name": self.name, "same": self.same}
        streams = [[part.kind, part.num_bytes, *part.parameters] for part in self.parts]
        optional = {"width": self.width, "half": self.half, "scale": self.scale, "axis": self.axis, "minus": self.minus}
        defaults = {"width": 1, "half": False, "scale": None, "axis": 0, "minus": None}
        given = {key: value for key, value in optional.items() if value != defaults[key]}
        return {
            "name": self.name,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "crc32": self.crc32,
            "streams": streams,
            **given,
        }

    @classmethod
    def from_json(cls, data: Any) -> Entry:
        """The entry that a header claims.

        Raises:
            ValueError: If it is none.
        """
        if not isinstance(data, dict) or not isinstance(data.get("name"), str):
            raise ValueError("an entry has no name")
        name: str = data["name"]
        try:
            if set(data) == {"name", "same"}:
                return cls(name, same=_text(data["same"]))
            return cls(name, **_fields(data))
        except KeyError as error:
            raise ValueError(f"the entry of {name[:200]!r} lacks {error}") from None
        except ValueError as error:
            raise ValueError(f"the entry of {name[:200]!r} is wrong: {error}") from None


def _fields(data: dict[str, Any]) -> dict[str, Any]:
    unknown = set(data) - {"name", "dtype", "shape", "crc32", "streams", "width", "half", "scale", "axis", "minus"}
    if unknown:
        raise ValueError(f"{sorted(unknown)[0][:40]!r} is not known")
    half, scale, minus = data.get("half", False), data.get("scale"), data.get("minus")
    if not isinstance(half, bool) or _text(data["dtype"]) not in DTYPES:
        raise ValueError(f"{str(data['dtype'])[:40]!r} is no type of a tensor, or half={str(half)[:40]!r} no choice")
    return {
        "dtype": data["dtype"],
        "shape": _shape(data["shape"]),
        "crc32": whole(data["crc32"], at_most=2**32 - 1),
        "parts": _parts(data["streams"]),
        "width": _width(data.get("width", 1)),
        "half": half,
        "scale": None if scale is None else _text(scale),
        "axis": whole(data.get("axis", 0), at_least=-1, at_most=2),
        "minus": None if minus is None else whole(minus, at_least=-(2**15), at_most=2**15 - 1),
    }


def _width(data: Any) -> int:
    width = whole(data, at_least=1, at_most=4)
    if width == 3:
        raise ValueError("there are no vectors of 3")
    return width


def _shape(data: Any) -> tuple[int, ...]:
    if not isinstance(data, list) or len(data) > 64:
        raise ValueError("it has no shape")
    shape = tuple(whole(size, at_most=_MOST_ELEMENTS) for size in data)
    # Zeros aside: a size beside a zero is memory for nobody, but also for no shape that a tensor may have.
    if math.prod(size for size in shape if size) > _MOST_ELEMENTS:
        raise ValueError(f"a tensor of {len(shape)} such dimensions fits into no memory")
    return shape


def _parts(data: Any) -> tuple[Part, ...]:
    if not isinstance(data, list) or len(data) > _MOST_STREAMS:
        raise ValueError("it has no streams")
    return tuple(map(_part, data))


def _part(data: Any) -> Part:
    if not isinstance(data, list) or len(data) < 2:
        raise ValueError("a stream has no kind or no length")
    kind, num_bytes, *parameters = data
    for parameter in parameters:
        if isinstance(parameter, bool) or not isinstance(parameter, (int, str)):
            raise ValueError(f"{str(parameter)[:40]!r} is no parameter of a stream")
    return Part(_text(kind), whole(num_bytes, at_most=_MOST_ELEMENTS), tuple(parameters))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} is no name")
    return value
