from __future__ import annotations

from pathlib import Path

import pytest

import lightning_compress as lc
from tests.distributed.matrix import CASES, cell
from tests.distributed.pool import Pool


@pytest.mark.parametrize(
    ("name", "precision", "place", "expected"),
    [
        ("prune_and_cluster", "16-mixed", "one", "equal"),
        ("cubic", "bf16-mixed", "ddp", "equal"),
        ("channels", "32", "fsdp2", "equal"),
    ],
)
def test_cells(name: str, precision: str, place: str, expected: str, tmp_path: Path, pool: Pool) -> None:
    assert name in CASES
    assert cell(name, precision, place, tmp_path, pool) == expected


def test_a_refusal_is_told(tmp_path: Path, pool: Pool) -> None:
    assert cell("block", "32", "fsdp2", tmp_path, pool) == "refused"


def test_a_state_that_is_lost_is_seen(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lc.Pruning, "load_state_dict", lambda self, state: None)
    assert cell("cubic", "32", "one", tmp_path, pool).startswith("DIFFERS after 3")


def test_a_run_that_fails_is_no_equal_one(tmp_path: Path, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        raise ValueError("no such run")

    monkeypatch.setattr(lc.Pruning, "on_train_start", fail)
    assert cell("cubic", "32", "one", tmp_path, pool) == "no: no such run"
