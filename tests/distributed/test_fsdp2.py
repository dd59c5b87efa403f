"""Contract 4 for sharded weights: FSDP2 on two processes is one process on the union of their data."""

from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, StochasticWeightAveraging

from tests.cases import CASES, Case, Net, assert_same, load, main_cases, num_zeros
from tests.distributed import jobs
from tests.distributed.pool import Pool
from tests.distributed.test_ddp import assert_close, check_is_one_process

SUPPORTED = [case for case in CASES if "fsdp2" not in case.refused]
REFUSED = [case for case in CASES if "fsdp2" in case.refused]


def ids(case: Case) -> str:
    return case.name


@main_cases(SUPPORTED)
def test_sharded_is_one_process(case: Case, pool: Pool) -> None:
    check_is_one_process(case, "fsdp2", pool)


@pytest.mark.parametrize("case", REFUSED, ids=ids)
def test_what_cannot_be_sharded_is_refused(case: Case, pool: Pool) -> None:
    for message in pool(jobs.refusal, case.name, "fsdp2"):
        assert case.refused["fsdp2"] in message


@pytest.mark.parametrize(
    ("average", "options"), [(EMAWeightAveraging, {}), (StochasticWeightAveraging, {"swa_lrs": 0.1})]
)
def test_averages_of_a_sharded_network_are_refused(
    average: type[Callback], options: dict[str, float], pool: Pool
) -> None:
    for message in pool(jobs.refusal, "cubic", "fsdp2", average, options):
        assert f"{average.__name__} does not support ModelParallelStrategy beside Pruning" in message


@main_cases(SUPPORTED)
def test_resumed_run_equals_uninterrupted(case: Case, pool: Pool, tmp_path: Path) -> None:
    whole = pool(jobs.fit, case.name, "fsdp2", 0, tmp_path)[0]
    for step in (3, 8):
        resumed = pool(jobs.fit, case.name, "fsdp2", 50, None, tmp_path / f"step={step}.ckpt")[0]
        assert_same(resumed.state, whole.state)
        assert_same(resumed.masks, whole.masks[step:])


def test_checkpoint_loads_into_the_plain_class(pool: Pool, tmp_path: Path) -> None:
    pool(jobs.fit, "cubic", "fsdp2", 0, tmp_path)
    model = Net()
    model.load_state_dict(load(tmp_path / "step=10.ckpt")["state_dict"], strict=True)
    assert num_zeros(model) == 346


@pytest.mark.parametrize(("before", "after"), [("ddp", "fsdp2"), ("fsdp2", "ddp")])
@pytest.mark.parametrize("name", ["cubic", "prune_and_qat", "rewind_weights"])
def test_runs_move_between_strategies(name: str, before: str, after: str, pool: Pool, tmp_path: Path) -> None:
    whole = pool(jobs.fit, name, before, 0, tmp_path)[0]
    resumed = pool(jobs.fit, name, after, 0, None, tmp_path / "step=3.ckpt")[0]
    assert_same(resumed.masks, whole.masks[3:])
    assert_close(resumed.state, whole.state)


@pytest.mark.parametrize("built", ["setup", "configure_model", "meta"])
@pytest.mark.parametrize("name", ["cubic", "qat", "prune_and_qat"])
def test_a_network_that_is_built_late_is_one_process(name: str, built: str, pool: Pool, tmp_path: Path) -> None:
    one = jobs.fit(name, "one")
    first, second = pool(jobs.fit_late, name, "fsdp2", built, None, tmp_path)
    assert_same(first.state, second.state)
    assert_same(first.masks, one.masks)
    assert_close(first.state, one.state)
    resumed = pool(jobs.fit_late, name, "fsdp2", built, tmp_path / "step=5.ckpt")[0]
    assert_same(resumed.state, first.state)


def test_weights_that_evaluation_leaves_gathered(pool: Pool) -> None:
    for name in ("cubic", "prune_and_qat"):
        one = jobs.fit(name, "one")
        first, second = pool(jobs.fit_in_one_group, name)
        assert_same(first.state, second.state)
        assert_same(first.masks, one.masks)
        assert_close(first.state, one.state)


@pytest.mark.parametrize("kind", ["fsdp2", "dcp"])
@pytest.mark.parametrize("name", ["cubic", "qat"])
def test_checkpoints_are_validated_alike(name: str, kind: str, pool: Pool, tmp_path: Path) -> None:
    for fitted, loaded, resumed in pool(jobs.fit_and_validate, name, kind, tmp_path):
        assert fitted == loaded == resumed


@pytest.mark.parametrize("kind", ["fsdp2", "dcp"])
def test_a_checkpoint_without_quantizers_is_of_another_model(kind: str, pool: Pool, tmp_path: Path) -> None:
    pool(jobs.fit, "cubic", kind, 0, tmp_path)
    for message in pool(jobs.refusal_to_resume, "prune_and_qat", kind, tmp_path / "step=3.ckpt"):
        assert "The checkpoint is of another model: 'conv1.quant_" in message


@pytest.mark.parametrize("kind", ["fsdp2", "tp"])
def test_a_teacher_shards_itself(kind: str, pool: Pool, tmp_path: Path) -> None:
    results = pool(jobs.distil, "cubic", kind, 0, tmp_path, None, False, True)
    one = jobs.distil("cubic", "one")
    for result in results:
        assert_close(result.state, one.state)
        assert_same(result.teacher, one.teacher)
    resumed = pool(jobs.distil, "cubic", kind, 50, None, tmp_path / "step=5.ckpt", False, True)[0]
    assert_same(resumed.state, results[0].state)


@pytest.mark.parametrize(
    ("name", "mean_teacher"), [("prune_and_cluster_and_qat", False), ("prune_and_cluster", True), ("qat", True)]
)
def test_a_sharded_student_is_one_process(name: str, mean_teacher: bool, pool: Pool, tmp_path: Path) -> None:
    first, second = pool(jobs.distil, name, "fsdp2", 0, tmp_path, None, mean_teacher)
    one = jobs.distil(name, "one", mean_teacher=mean_teacher)
    for result in (first, second):
        assert_same(result.masks, one.masks)
        assert_close(result.state, one.state)
        assert_close(result.teacher, one.teacher)
    assert_same(first.state, second.state)
    resumed = pool(jobs.distil, name, "fsdp2", 50, None, tmp_path / "step=5.ckpt", mean_teacher)[0]
    assert_same(resumed.state, first.state)
    assert_same(resumed.teacher, first.teacher)
