from __future__ import annotations

from pathlib import Path

import torch

from tests.distributed.placements import CASES, difference


def test_how_far_two_state_dicts_are_apart() -> None:
    weight = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
    one = {"weight": weight, "scale": torch.tensor(1.0)}
    assert difference(one, one) == "equal"
    assert difference({**one, "scale": torch.tensor(1.0 + 3e-6)}, one) == "<= 1e-5"
    assert difference({**one, "weight": weight.clamp(min=0.5)}, one) == "<= 1e0, 1 zeros elsewhere"
    assert difference({"weight": weight}, one).startswith("DIFFERS")


def test_the_table_has_all_cases_and_no_difference() -> None:
    table = Path(__file__).with_name("README.md").read_text()
    for name in CASES:
        assert table.count(f"\n| {name} |") == 2
    assert "DIFFERS" not in table
    assert "| no:" not in table
