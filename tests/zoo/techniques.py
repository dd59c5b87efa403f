"""Columns of the tables, by table."""

from __future__ import annotations

from tests.zoo.cells import Column
from tests.zoo.columns import channels, clustering, distillation, packing, pruning, quantization

TECHNIQUES: dict[str, tuple[Column, ...]] = {
    "quantization": quantization.COLUMNS,
    "training": (
        *pruning.COLUMNS,
        *channels.COLUMNS,
        *clustering.COLUMNS,
        *packing.COLUMNS,
        *distillation.COLUMNS,
    ),
}
