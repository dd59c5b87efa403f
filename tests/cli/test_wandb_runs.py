"""An offline W&B run of the command ``run``, read back: config, groups, summary, histograms, tables, artifacts."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from lightning_compress.cli import main
from lightning_compress.reporting.report_metrics import report_metrics
from lightning_compress.reporting.run_report import read_report
from tests.cli.test_run import WANDB, the_run
from tests.fits import finished_records

AGENT_ID = "agent0id"


@pytest.fixture
def offline(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A process in which no W&B run was made before: its settings are read once."""
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_RUN_ID", AGENT_ID)
    return recipe


@pytest.fixture(autouse=True)
def closed():
    yield
    wandb.teardown()


def records_by_job(run: Path) -> dict[str, list[Record]]:
    """Records of all runs of a command, by job type."""
    found = {}
    for file in run.glob("wandb/offline-run-*/run-*.wandb"):
        records = finished_records(file)
        (info,) = [record.run for record in records if record.HasField("run")][:1]
        found[info.job_type] = records
    return found


def info_of(records: list[Record]):
    return next(record.run for record in records if record.HasField("run"))


def history_of(records: list[Record]) -> list[dict[str, object]]:
    return [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in records
        if record.HasField("history")
    ]


def config_of(records: list[Record]) -> dict[str, object]:
    updates = [u for record in records if record.HasField("config") for u in record.config.update]
    updates += [u for record in records if record.HasField("run") for u in record.run.config.update]
    return {update.key or ".".join(update.nested_key): json.loads(update.value_json) for update in updates}


def test_a_run_is_read_back(offline):
    quantized = "--quantization={targets: {module: model}}"
    main(["run", "small.yaml", WANDB, "--baseline=fit", quantized, "--trainer.log_every_n_steps=1"])
    directory = the_run()
    jobs = records_by_job(directory)
    assert set(jobs) == {"compress", "baseline"}

    main_run, baseline = info_of(jobs["compress"]), info_of(jobs["baseline"])
    assert main_run.run_group == baseline.run_group == f"small {directory.name}"
    assert sorted(main_run.tags) == ["pruning", "quantization"]
    assert main_run.run_id == AGENT_ID, "the main run takes the id of an agent"
    assert baseline.run_id != AGENT_ID, "the baseline does not"
    config = config_of(jobs["compress"])
    assert config["pruning.sparsity"] == 0.5
    assert config["quantization.weights.bits"] == 8
    assert config["data.batch_size"] == 64

    rows = history_of(jobs["compress"])
    keys = {key for row in rows for key in row}
    for key in (
        "compression/sparsity",
        "compression/sparsity/model.features.0.weight",
        "compression/quantization_phase",
        "compression/reached/Pruning",
        "compression/scale/model.features.0.weight",
        "compression/range/model.features.1.relu",
        "compression/bits/model.features.0.weight",
        "train/loss",
        "test/acc",
    ):
        assert key in keys, key
    assert all("trainer/global_step" in row for row in rows)

    _, report = read_report(directory)
    last = {key: value for row in rows for key, value in row.items()}
    for name, value in report_metrics(report).items():
        assert last[name] == pytest.approx(value), name
    assert last["report/bytes"] == (directory / "model.packed").stat().st_size
    assert "report/test/acc_change" in last

    histograms = [key for key in keys if key.startswith("compression/weights/")]
    assert "compression/weights/model.features.7.weight/_type" in histograms or any(
        isinstance(last.get(key), dict) and last[key].get("_type") == "histogram" for key in histograms
    )
    artifacts = {record.artifact.name: record.artifact for record in jobs["compress"] if record.HasField("artifact")}
    expected = {"packed", "onnx", "onnx-fp32", "report", "html", "figures"}
    assert {f"small-{kind}" for kind in expected} <= set(artifacts)
    metadata = json.loads(artifacts["small-packed"].metadata)
    assert metadata["report/bytes"] == last["report/bytes"]
    assert "MB ->" in metadata["headline"] or "kB ->" in metadata["headline"]


def test_the_teacher_is_an_input(offline):
    ramp = "{class_path: lightning_compress.Ramp, init_args: {first: 1.0, last: 0.5}}"
    text = offline.read_text().replace("model: conv4", f"student: conv4, task_weight: {ramp}")
    Path("distilled.yaml").write_text(text.replace("ClassificationModule", "DistillationModule"))
    Path("teacher.yaml").write_text(offline.read_text().replace("pruning:", "# pruning:"))
    Path("teacher.yaml").write_text(Path("teacher.yaml").read_text().replace("logger: false", f"logger: {WANDB[17:]}"))
    main(["run", "distilled.yaml", WANDB, "--teacher=teacher.yaml", "--trainer.log_every_n_steps=1"])
    directory = the_run("distilled")
    jobs = records_by_job(directory)
    assert set(jobs) == {"compress", "teacher"}
    assert info_of(jobs["compress"]).run_id == AGENT_ID
    assert info_of(jobs["teacher"]).run_id != AGENT_ID
    used = [r.artifact for r in jobs["compress"] if r.HasField("artifact") and r.artifact.use_after_commit]
    assert [artifact.name for artifact in used] == ["distilled-teacher"]
    keys = {key for row in history_of(jobs["compress"]) for key in row}
    assert {"train/loss", "train/kd", "train/task_weight"} <= keys


class Kind(NamedTuple):
    """A kind of recipe: flags on the small one, and what its W&B run has to show."""

    flags: Sequence[str]
    tags: Sequence[str]
    config: Mapping[str, object]
    keys: Sequence[str]
    columns: Sequence[str]
    artifacts: Sequence[str] = ("packed",)


FEATURES = "model.features.0.weight"
KINDS = {
    "pruning": Kind(
        [],
        ["pruning"],
        {"pruning.sparsity": 0.5, "pruning.schedule.end": 0.5},
        ["reached/Pruning", f"sparsity/{FEATURES}"],
        [],
    ),
    "channels": Kind(
        ["--pruning.pattern=Channels", "--pruning.targets.module=model"],
        ["pruning"],
        {"pruning.pattern.class_path": "lightning_compress.Channels"},
        ["reached/Pruning", f"sparsity/{FEATURES}"],
        [],
        ["packed", "removal"],
    ),
    "clustering": Kind(
        ["--clustering={num_clusters: 4, schedule: {end: 0.5}}"],
        ["clustering", "pruning"],
        {"clustering.num_clusters": 4},
        ["reached/WeightClustering", "clustered", f"clusters/{FEATURES}"],
        ["clusters"],
    ),
    "size budget": Kind(
        ["--pruning=null", "--size_budget={size: 200kB}"],
        ["size_budget"],
        {"size_budget.size": "200kB", "pruning": None},
        ["reached/SizeBudget"],
        [],
    ),
    "quantization": Kind(
        ["--pruning=null", "--quantization={targets: {module: model}}"],
        ["quantization"],
        {"quantization.weights.bits": 8},
        ["reached/QuantizationAwareTraining", "quantization_phase", f"scale/{FEATURES}", f"bits/{FEATURES}"],
        ["scale", "range", "bits"],
        ["packed", "onnx", "onnx-fp32"],
    ),
}


@pytest.mark.parametrize(
    "name", [name if name == "clustering" else pytest.param(name, marks=pytest.mark.slow) for name in KINDS]
)
def test_each_kind_of_recipe_is_read_back(name, offline):
    kind = KINDS[name]
    main(["run", "small.yaml", WANDB, "--trainer.log_every_n_steps=1", "--monitor={}", *kind.flags])
    directory = the_run()
    (records,) = records_by_job(directory).values()
    assert sorted(info_of(records).tags) == kind.tags
    assert info_of(records).job_type == "compress"
    config = config_of(records)
    assert {key: config[key] for key in kind.config} == kind.config

    rows = history_of(records)
    logged = {key: value for row in rows for key, value in row.items()}
    assert all("trainer/global_step" in row for row in rows), "the axis"
    for key in ("sparsity", *kind.keys):
        assert f"compression/{key}" in logged, key
    assert logged["train/loss"] > 0
    if "pruning" in kind.tags:
        assert logged["compression/sparsity"] == pytest.approx(0.5, abs=0.01)
    assert logged["compression/layers/_type"] == "table-file"
    (file,) = directory.rglob("compression/layers_*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"][:4] == ["layer", "weights", "zeros", "sparsity"]
    assert set(kind.columns) <= set(table["columns"])
    assert FEATURES in [row[0] for row in table["data"]]
    histograms = [key for key in logged if key.startswith("compression/weights/") and key.endswith("/_type")]
    assert histograms
    assert {logged[key] for key in histograms} == {"histogram"}

    # The summary of a run is the last value of each key.
    _, report = read_report(directory)
    assert {key: logged[key] for key in report_metrics(report)} == pytest.approx(report_metrics(report))
    assert logged["report/bytes"] == (directory / "model.packed").stat().st_size
    artifacts = {record.artifact.name for record in records if record.HasField("artifact")}
    assert artifacts >= {f"small-{end}" for end in (*kind.artifacts, "report", "html", "figures")}


def test_a_chain_is_read_back(offline):
    first = offline.read_text().replace("logger: false", f"logger: {WANDB[17:]}")
    Path("first.yaml").write_text(first)
    main(["run", "small.yaml", WANDB, "--after=first.yaml", "--pruning=null", "--clustering.num_clusters=4"])
    jobs = records_by_job(the_run())
    assert set(jobs) == {"compress", "stage"}
    assert info_of(jobs["stage"]).run_group == info_of(jobs["compress"]).run_group
    assert info_of(jobs["stage"]).run_id != AGENT_ID
    assert info_of(jobs["compress"]).run_id == AGENT_ID
    assert info_of(jobs["stage"]).tags == ["pruning"]
    assert info_of(jobs["compress"]).tags == ["clustering"]
    assert config_of(jobs["stage"])["pruning.sparsity"] == 0.5


def test_the_environment_is_stronger_than_the_recipe(recipe, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    main(["run", "small.yaml", WANDB])
    assert not list(the_run().glob("wandb/offline-run-*"))


def test_the_same_metrics_in_a_csv_file(recipe):
    main(["run", "small.yaml", "--trainer.logger=CSVLogger", "--trainer.log_every_n_steps=1"])
    (file,) = the_run().rglob("metrics.csv")
    with file.open() as lines:
        rows = list(csv.DictReader(lines))
    last = {key: value for row in rows for key, value in row.items() if value}
    _, report = read_report(the_run())
    for name, value in report_metrics(report).items():
        assert float(last[name]) == pytest.approx(value)
    assert float(last["compression/sparsity"]) == 0.5
    assert "compression/sparsity/model.features.0.weight" in last


def test_the_same_metrics_in_tensorboard(recipe):
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main(["run", "small.yaml", "--trainer.logger=TensorBoardLogger", "--trainer.log_every_n_steps=1"])
    # Lightning writes a file for the fit and one for the test, to one directory.
    (directory,) = {file.parent for file in the_run().rglob("events.out.tfevents*")}
    events = EventAccumulator(str(directory)).Reload()
    _, report = read_report(the_run())
    for name, value in report_metrics(report).items():
        assert events.Scalars(name)[-1].value == pytest.approx(value)
    assert "compression/weights/model.features.7.weight" in events.Tags()["histograms"]
