"""Columns of the tables, by technique."""

from __future__ import annotations

from tests.zoo import quantization
from tests.zoo.cells import Column

TECHNIQUES: dict[str, tuple[Column, ...]] = {
    "quantization": quantization.COLUMNS,
}
