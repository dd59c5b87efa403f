"""What the techniques hold and send under FSDP2, by the formulas of ``python -m tests.distributed.costs``."""

from __future__ import annotations

from tests.distributed.costs import FORMULAS, SQUARES, is_near, measure
from tests.distributed.pool import Pool


def test_formulas_are_within_a_tenth(pool: Pool) -> None:
    found = dict(measure(pool))
    assert found.keys() == FORMULAS.keys()
    for name, cost in found.items():
        assert is_near(cost, FORMULAS[name](SQUARES, 2)), (name, cost)
