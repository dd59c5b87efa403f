"""A run that was saved on some ranks goes on with any number of them, and from one strategy to the other.

Each run on a number of ranks is a run on the union of the data, hence all are close to one process; masks are equal.
The whole table is behind ``slow``.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.cases import assert_same, load
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.distributed.test_ddp import assert_close

NAME = "prune_and_cluster_and_qat"
Pools = Callable[[int], Pool]


@pytest.fixture(scope="module")
def pools() -> Iterator[Pools]:
    """A pool of any number of ranks, started when it is first used."""
    started: list[Pool] = []

    @cache
    def of(num_ranks: int) -> Pool:
        started.append(Pool(num_ranks))
        return started[-1]

    yield of
    for pool in started:
        pool.close()


def check(pools: Pools, before: tuple[str, int], after: tuple[str, int], folder: Path) -> None:
    one = jobs.fit(NAME, "one")
    whole = pools(before[1])(jobs.fit, NAME, before[0], 0, folder)[0]
    results = pools(after[1])(jobs.fit, NAME, after[0], 50, None, folder / "step=5.ckpt")
    for result in results:
        assert_same(result.masks, one.masks[5:])
        assert_close(result.state, one.state)
        assert_same(result.state, results[0].state)
    assert_close(whole.state, one.state)


@pytest.mark.parametrize(
    ("before", "after"),
    [(("ddp", 2), ("fsdp2", 4)), (("fsdp2", 4), ("ddp", 1)), (("dcp", 2), ("dcp", 4)), (("dcp", 4), ("fsdp2", 1))],
    ids=str,
)
def test_a_run_goes_on_elsewhere(before: tuple[str, int], after: tuple[str, int], pools: Pools, tmp_path: Path) -> None:
    check(pools, before, after, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("after", [(kind, n) for kind in ("ddp", "fsdp2") for n in (1, 2, 4)], ids=str)
@pytest.mark.parametrize("before", [(kind, n) for kind in ("ddp", "fsdp2") for n in (1, 2, 4)], ids=str)
def test_a_run_goes_on_anywhere(before: tuple[str, int], after: tuple[str, int], pools: Pools, tmp_path: Path) -> None:
    check(pools, before, after, tmp_path)


def test_a_consolidated_checkpoint_is_that_of_one_process(pools: Pools, tmp_path: Path) -> None:
    pools(2)(jobs.fit, NAME, "dcp", 0, tmp_path / "shards")
    directory, file = tmp_path / "shards" / "step=10.ckpt", tmp_path / "weights.ckpt"
    command = [sys.executable, "-m", "torch.distributed.checkpoint.format_utils", "dcp_to_torch"]
    subprocess.run([*command, str(directory), str(file)], check=True, timeout=600)
    jobs.fit(NAME, "one", 0, tmp_path / "one")
    one = load(tmp_path / "one" / "step=10.ckpt")
    assert_close(load(file)["state_dict"], one["state_dict"])
    states = load(directory / "meta.pt")["callbacks"]
    for key in (key for key in one["callbacks"] if key.startswith(("Pruning", "WeightClustering"))):
        assert_same(states[key], one["callbacks"][key])
