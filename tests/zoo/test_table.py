"""Cells from exceptions, and the table of cells."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import lightning_compress as lc
from tests.zoo import table as tables
from tests.zoo.cells import Cell, Column, measure
from tests.zoo.subject import Subject, sqnr


def make() -> tuple[nn.Module, torch.Tensor]:
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), torch.randn(8, 4)


def raise_foreign(subject: Subject) -> float:
    raise ValueError("not a sentence of ours")


def refuse(subject: Subject) -> float:
    lc.calibrate(subject.network, [])
    return 0.0


def test_a_cell_is_a_number_a_refusal_or_a_failure() -> None:
    subject = Subject(make)
    assert measure(Column("a", lambda _: 30.0, least=20.0), subject) == Cell("a", number=30.0)
    assert measure(Column("a", lambda _: float("nan"), least=20.0), subject).is_low
    assert measure(Column("a", refuse, least=20.0), subject).refusal.startswith("calibrate: there is no batch")
    assert measure(Column("a", raise_foreign, least=20.0), subject).failure.startswith("EXCEPTION ValueError: not a")
    assert measure(Column("a", lambda _: {}[0], least=20.0), subject).failure == "EXCEPTION KeyError: 0"


def test_sqnr_is_that_of_the_worst_output() -> None:
    a, b = torch.ones(10), torch.ones(10)
    assert sqnr([a, b], [a * 1.1, b * 1.01]) == pytest.approx(20.0, abs=0.1)


def test_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "EXPLANATIONS", {("yolo", "x"): "It is deep."})
    rows = {
        "llama": [Cell("x", refusal="Not supported."), Cell("y", failure="HANG")],
        "yolo": [Cell("x", number=8.0, is_low=True), Cell("y", number=271.0)],
        "bert": [Cell("x", refusal="Not supported."), Cell("y", number=30.0)],
    }
    assert tables.table(rows).splitlines() == [
        "| family | network | x | y |",
        "|---|---|---|---|",
        "| detectors | yolo | 8.0 [1] | 99.0 |",
        "| text encoders | bert | [2] | 30.0 |",
        "| text decoders | llama | [2] | HANG |",
        "",
        "3 networks, 6 cells: 3 numbers, 2 refusals (33 %), 1 exceptions or hangs.",
        "",
        "1. It is deep.",
        "2. Not supported.",
    ]
