"""Parsing of entries from the header of a file that may be damaged or malicious."""

from __future__ import annotations

import math
from typing import Any

from lightning_compress.packing.bit_patterns import DTYPES
from lightning_compress.packing.entry import OPTIONAL_KEYS, REQUIRED_KEYS, Entry, StreamEntry
from lightning_compress.packing.streams import checked_int

# No model that fits into memory reaches these bounds.
_MAX_ELEMENTS = 2**48
_MAX_DIMENSIONS = 64
_MAX_STREAMS = 8


def parse_entry(data: Any, *, sealed: bool = True) -> Entry:
    """Return the entry that :meth:`Entry.to_json` wrote.

    Args:
        data: Description of a tensor.
        sealed: If True, it has a checksum.

    Raises:
        ValueError: If the data do not describe a tensor.
    """
    if not isinstance(data, dict) or not isinstance(data.get("name"), str):
        raise ValueError("an entry has no name")
    name: str = data["name"]
    try:
        if set(data) == {"name", "same"}:
            return Entry(name, shared_with=_text(data["same"]))
        return Entry(name, **_fields(data, sealed))
    except KeyError as error:
        raise ValueError(f"the entry of {name[:200]!r} has no key {error}") from None
    except ValueError as error:
        raise ValueError(f"the entry of {name[:200]!r} is invalid: {error}") from None


def _fields(data: dict[str, Any], sealed: bool) -> dict[str, Any]:
    unknown = set(data) - {*REQUIRED_KEYS, *OPTIONAL_KEYS}
    if unknown:
        raise ValueError(f"unknown key {sorted(unknown)[0][:40]!r}")
    optional = OPTIONAL_KEYS | data
    scale, negative_zero = optional["scale"], optional["minus"]
    return {
        "dtype": _dtype(data["dtype"]),
        "shape": _shape(data["shape"]),
        "crc32": checked_int(data["crc32"], at_most=2**32 - 1) if sealed else None,
        "streams": _streams(data["streams"]),
        "width": _width(optional["width"]),
        "half": _half(optional["half"], data["dtype"]),
        "scale": None if scale is None else _text(scale),
        "axis": checked_int(optional["axis"], at_least=-1, at_most=2),
        # Larger than all integers of the tensor, of which zero is one.
        "negative_zero": None if negative_zero is None else checked_int(negative_zero, at_least=1, at_most=2**15 - 1),
    }


def _dtype(data: Any) -> str:
    if _text(data) not in DTYPES:
        raise ValueError(f"the dtype {data[:40]!r} is not supported")
    return str(data)


def _half(data: Any, dtype: str) -> bool:
    if not isinstance(data, bool):
        raise ValueError(f"half must be true or false, not {str(data)[:40]!r}")
    if data and dtype not in ("float32", "float64"):
        raise ValueError(f"a tensor of dtype {dtype} cannot be rounded to float16")
    return data


def _width(data: Any) -> int:
    width = checked_int(data, at_least=1, at_most=4)
    if width == 3:
        raise ValueError("vectors of 3 elements are not supported")
    return width


def _shape(data: Any) -> tuple[int, ...]:
    if not isinstance(data, list) or len(data) > _MAX_DIMENSIONS:
        raise ValueError(f"its shape must be a list of at most {_MAX_DIMENSIONS} integers")
    shape = tuple(checked_int(size, at_most=_MAX_ELEMENTS) for size in data)
    # Without the zeros: a tensor with a size of zero takes no memory, but PyTorch multiplies the other sizes for its
    # strides, and the product must not overflow.
    if math.prod(size for size in shape if size) > _MAX_ELEMENTS:
        raise ValueError(f"a tensor of this shape, with {len(shape)} dimensions, exceeds the largest supported size")
    return shape


def _streams(data: Any) -> tuple[StreamEntry, ...]:
    if not isinstance(data, list) or len(data) > _MAX_STREAMS:
        raise ValueError(f"its streams must be a list of at most {_MAX_STREAMS}")
    return tuple(map(_stream, data))


def _stream(data: Any) -> StreamEntry:
    if not isinstance(data, list) or len(data) < 2:
        raise ValueError("a stream has no kind or no length")
    kind, num_bytes, *parameters = data
    for parameter in parameters:
        if isinstance(parameter, bool) or not isinstance(parameter, (int, str)):
            raise ValueError(f"the parameter {str(parameter)[:40]!r} of a stream must be an integer or a string")
    return StreamEntry(_text(kind), checked_int(num_bytes, at_most=_MAX_ELEMENTS), tuple(parameters))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{str(value)[:40]!r} must be a string")
    return value
