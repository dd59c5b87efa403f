"""Names that differ between a file and a model."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_compress.packing.entry import Entry
from lightning_compress.packing.validation import check_match


@pytest.mark.parametrize(
    ("names", "listed"),
    [
        (["b", "x" * 300, "c"], "b, c, " + "x" * 200),
        (["b", "a", "c", "x" * 300], "a, b, c and 1 more"),
    ],
)
def test_three_names_at_most(names: list[str], listed: str) -> None:
    with pytest.raises(ValueError, match="do not match") as caught:
        check_match([Entry(name) for name in names], nn.Identity())
    assert str(caught.value) == f"its names do not match the model; missing: none; unexpected: {listed}"
