"""Contract 4: two processes are one process on the union of their data."""

from pathlib import Path

import pytest
import torch

from tests.cases import CASES, Case, Net, assert_same, every_case, load, main_cases, num_masked, num_zeros
from tests.distributed import jobs
from tests.distributed.pool import Pool


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], *, single: bool = False) -> None:
    for name in theirs:
        torch.testing.assert_close(
            ours[name], theirs[name], rtol=1e-4 if single else 1e-9, atol=1e-5 if single else 1e-11
        )


def check_is_one_process(case: Case, kind: str, pool: Pool) -> None:
    """Two ranks end with the same bits, and as one process does on the union of their data."""
    first, second = pool(jobs.fit, case.name, kind)
    assert_same(first.masks, second.masks)
    assert_same(first.state, second.state)
    assert abs(num_masked(first.masks[-1]) - case.zeros) <= case.within
    if "union" not in case.differs:
        one = jobs.fit(case.name, "one")
        assert_same(first.masks, one.masks)
        assert_close(first.state, one.state, single="double" in case.differs)


@every_case
def test_two_processes_are_one(case: Case, pool: Pool) -> None:
    check_is_one_process(case, "ddp", pool)


@main_cases(CASES)
def test_seeds_of_ranks_do_not_matter(case: Case, pool: Pool) -> None:
    ours, theirs = (pool(jobs.fit, case.name, "ddp", seed)[0] for seed in (0, 100))
    assert_same(ours.masks, theirs.masks)
    assert_same(ours.state, theirs.state)


@main_cases(CASES)
def test_resumed_run_equals_uninterrupted(case: Case, pool: Pool, tmp_path: Path) -> None:
    whole = pool(jobs.fit, case.name, "ddp", 0, tmp_path)[0]
    for step in (3, 5, 8):
        resumed = pool(jobs.fit, case.name, "ddp", 50, None, tmp_path / f"step={step}.ckpt")[0]
        assert_same(resumed.state, whole.state)
        assert_same(resumed.masks, whole.masks[step:])


def test_checkpoint_loads_into_the_plain_class(pool: Pool, tmp_path: Path) -> None:
    pool(jobs.fit, "cubic", "ddp", 0, tmp_path)
    model = Net()
    model.load_state_dict(load(tmp_path / "step=10.ckpt")["state_dict"], strict=True)
    assert num_zeros(model) == 346


def test_accumulation(pool: Pool) -> None:
    first, second = pool(jobs.accumulate, "taylor", "ddp")
    one = jobs.accumulate("taylor", "one")
    assert_same(first.masks, second.masks)
    assert_same(first.masks, one.masks)
    assert_close(first.state, one.state)


def test_averages(pool: Pool) -> None:
    first, second = pool(jobs.average, "ddp")
    one = jobs.average("one")
    assert_same(first.state, second.state)
    assert_close(first.state, one.state)
    assert sum(int((first.state[name] == 0).sum()) for name in first.masks[-1]) == 346


def test_a_smaller_network_and_its_resumed_run(pool: Pool, tmp_path: Path) -> None:
    first, second = pool(jobs.shrink, "ddp", tmp_path)
    one = jobs.shrink("one")
    assert first.state["conv1.weight"].shape[0] == 4
    assert_same(first.state, second.state)
    assert_close(first.state, one.state)
    resumed = pool(jobs.shrink, "ddp", None, tmp_path / "step=4.ckpt")[1]
    assert_same(resumed.state, first.state)


def test_ranks_that_disagree_are_told(pool: Pool) -> None:
    for message in pool(jobs.tamper, "ddp"):
        assert "masks differ between ranks" in message


@pytest.mark.parametrize("name", ["cubic", "prune_and_cluster", "qat"])
def test_two_processes_with_a_teacher_are_one(name: str, pool: Pool, tmp_path: Path) -> None:
    first, second = pool(jobs.distil, name, "ddp", 0, tmp_path)
    assert_same(first.masks, second.masks)
    assert_same(first.state, second.state)
    one = jobs.distil(name, "one")
    assert_same(first.masks, one.masks)
    assert_close(first.state, one.state)
    resumed = pool(jobs.distil, name, "ddp", 50, None, tmp_path / "step=5.ckpt")[0]
    assert_same(resumed.state, first.state)


def test_a_checkpoint_is_evaluated_alike(pool: Pool, tmp_path: Path) -> None:
    pool(jobs.fit, "cubic", "ddp", 0, tmp_path)
    first, second = pool(jobs.evaluate, "ddp", tmp_path / "step=10.ckpt")
    assert first == second
