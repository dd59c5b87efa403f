from __future__ import annotations

import pytest

from lightning_compress.pruning.rewind import RewindLearningRate, RewindWeights


def test_what_returns() -> None:
    assert RewindWeights(0).weights
    assert not RewindLearningRate("2ep").weights
    assert RewindWeights() == RewindWeights(0) != RewindLearningRate(0)


@pytest.mark.parametrize("to", [-1, 1.5, "soon", "2 epochs", True])
def test_what_is_no_time_is_refused(to: int | float | str) -> None:
    with pytest.raises(ValueError, match="to="):
        RewindWeights(to)
