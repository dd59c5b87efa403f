"""Commands on finished runs: report, compare, export and verify."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch

import lightning_compress as lc
from lightning_compress.cli import main
from lightning_compress.reporting.report_differences import statements
from lightning_compress.reporting.run_report import RunReport, read_report
from lightning_compress.reporting.tradeoff import compare_runs
from tests.cli.conftest import RECIPE
from tests.cli.test_run import the_run

QUANTIZED = RECIPE + "quantization: {targets: {module: model}}\n"
CHANNELS = RECIPE.replace(
    "pruning: {sparsity: 0.5, schedule: {end: 0.5}}",
    "pruning: {sparsity: 0.5, pattern: {class_path: lightning_compress.Channels}, targets: {module: model}}",
)


# A dense network after channels were removed, with a stage before that, and the initial model as its baseline.
CHAIN = QUANTIZED.replace("seed_everything", "after: channels.yaml\nbaseline: test\nseed_everything")


@pytest.fixture(scope="module")
def finished_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A quantized run, one whose channels were removed, and one that quantizes such a network."""
    directory, here = tmp_path_factory.mktemp("finished"), Path.cwd()
    os.chdir(directory)
    try:
        for name, text in (("quantized", QUANTIZED), ("channels", CHANNELS), ("chain", CHAIN)):
            Path(f"{name}.yaml").write_text(text)
            main(["run", f"{name}.yaml"])
        yield {name: the_run(name).absolute() for name in ("quantized", "channels", "chain")}
    finally:
        os.chdir(here)


@pytest.fixture
def copies(finished_runs: dict[str, Path], workdir: Path) -> dict[str, Path]:
    """Copies of the finished runs, which a test may change."""
    for name, directory in finished_runs.items():
        shutil.copytree(directory, workdir / name)
    return {name: workdir / name for name in finished_runs}


def change(directory: Path, **changes: object) -> RunReport:
    _, report = read_report(directory)
    changed = dataclasses.replace(report, **changes)
    changed.write(directory)
    return changed


def test_a_report_is_printed_and_written_again(copies, capsys):
    (copies["quantized"] / "report.html").unlink()
    main(["report", str(copies["quantized"])])
    printed = capsys.readouterr().out
    assert "INT8 ONNX" in printed
    assert str(copies["quantized"] / "report.html") in printed
    assert (copies["quantized"] / "report.html").is_file()


@pytest.mark.parametrize("command", ["report", "verify", "compare", "export"])
def test_a_directory_without_a_report_is_named(command, error_message):
    Path("empty").mkdir()
    assert "empty/report.json cannot be read (No such file or directory)" in error_message(command, "empty")


def test_runs_are_compared(copies, capsys):
    main(["compare", str(copies["quantized"]), str(copies["channels"]), "--out=compared"])
    printed = capsys.readouterr().out
    assert "quantized" in printed
    assert "channels" in printed
    written = json.loads(Path("compared/compare.json").read_text())
    assert written["metric"] == "test/acc"
    assert {run["name"] for run in written["runs"]} == {"quantized", "channels"}
    assert Path("compared/compare.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_recipe_are_told_apart_by_their_keys(copies, capsys):
    directory, report = read_report(copies["quantized"])
    sparser = dict(report.config, pruning=dict(report.config["pruning"], sparsity=0.9))
    shutil.copytree(directory, "sparser")
    change(Path("sparser"), config=sparser)
    main(["compare", str(directory), "sparser", "--out=compared"])
    printed = "".join(capsys.readouterr().out.split())
    assert "pruning.sparsity=0.5" in printed
    assert "pruning.sparsity=0.9" in printed
    written = json.loads(Path("compared/compare.json").read_text())
    assert [run["settings"] for run in written["runs"]] == [{"pruning.sparsity": 0.5}, {"pruning.sparsity": 0.9}]
    # What an earlier comparison wrote is no run, as a shell's glob gives it.
    main(["compare", str(directory), "sparser", "compared"])
    assert "left out" not in capsys.readouterr().out


def test_a_dominated_run_is_marked(copies):
    _, good = read_report(copies["quantized"])
    worse = [
        dataclasses.replace(model, metrics={"test/acc": model.metrics["test/acc"] - 0.01}) if model.metrics else model
        for model in good.models
    ]
    pair = [("a/good", good), ("a/bad", dataclasses.replace(good, models=tuple(worse)))]
    runs = compare_runs(pair).runs
    assert [run.dominated_by for run in runs] == ["", "quantized good"]
    # A smaller one of lower accuracy is in the Pareto set.
    smaller = [dataclasses.replace(m, num_bytes=m.num_bytes and m.num_bytes // 2) for m in worse]
    pair[1] = ("a/bad", dataclasses.replace(good, models=tuple(smaller)))
    assert [run.dominated_by for run in compare_runs(pair).runs] == ["", ""]


def test_a_loss_is_better_when_it_is_lower(copies):
    _, good = read_report(copies["quantized"])
    worse = [
        dataclasses.replace(model, metrics={"test/loss": model.metrics["test/loss"] + 1}) if model.metrics else model
        for model in good.models
    ]
    pair = [("a/good", good), ("a/bad", dataclasses.replace(good, models=tuple(worse)))]
    assert [run.dominated_by for run in compare_runs(pair, "test/loss").runs] == ["", "quantized good"]


def test_an_unknown_metric_lists_those_that_exist(copies, error_message):
    message = error_message("compare", str(copies["quantized"]), "--metric=accuracy")
    assert "No run has the metric 'accuracy': choose one of test/acc, test/loss." in message


def test_an_unfinished_run_is_left_out_of_several(copies, capsys):
    Path("cut").mkdir()
    main(["compare", str(copies["quantized"]), "cut"])
    assert "cut is left out: it has no report.json." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "num_files", "models"),
    [
        ("quantized", 3, {"fitted", "packed file", "FP32 ONNX", "INT8 ONNX"}),
        ("channels", 1, {"fitted, channels masked", "channels removed", "packed file"}),
        ("chain", 3, {"channels", "dense baseline", "fitted", "packed file", "FP32 ONNX", "INT8 ONNX"}),
    ],
)
def test_all_numbers_of_a_run_are_computed_again(copies, capsys, name, num_files, models):
    _, report = read_report(copies[name])
    assert {model.title for model in report.models} == models
    main(["verify", str(copies[name]), "--test"])
    printed = capsys.readouterr().out
    assert (
        f"Verified: {num_files} files (bytes, SHA-256), {len(report.layers)} layers (shape, zeros, values)" in printed
    )
    assert f"{len(statements(report))} numbers computed again" in printed
    assert printed.count(": latency ") == sum(model.timing is not None for model in report.models)


def test_sensitivities_are_measured_again(copies, workdir, capsys):
    (workdir / "quantized.yaml").write_text(QUANTIZED)
    directory = str(copies["quantized"])
    main(["sensitivity", "--config=quantized.yaml", "--num_batches=1", "--sparsities=0.5", f"--report={directory}"])
    _, report = read_report(directory)
    assert [found.technique for found in report.sensitivities] == ["quantization", "pruning"]
    main(["verify", directory, "--test"])
    pruning = report.sensitivities[1]
    first = dataclasses.replace(pruning.layers[0], delta_losses={"50 %": 9.0})
    layers = (first, *pruning.layers[1:])
    change(copies["quantized"], sensitivities=(dataclasses.replace(pruning, layers=layers),))
    main(["report", directory])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main(["verify", directory, "--test"])
    assert f"sensitivity of {first.layer} to pruning: delta_losses.50 % is " in capsys.readouterr().out


def test_a_checkpoint_that_is_missing_is_named(copies, error_message):
    shutil.rmtree(copies["channels"] / "checkpoints")
    message = error_message("verify", str(copies["channels"]), "--test")
    assert "does not exist: give a run with a checkpoint." in message


def test_a_changed_html_report_is_found(copies, capsys):
    path = copies["quantized"] / "report.html"
    path.write_text(path.read_text().replace("INT8 ONNX", "INT4 ONNX"))
    with pytest.raises(SystemExit) as exit_:
        main(["verify", str(copies["quantized"])])
    assert exit_.value.code == 1
    assert "report.html says something else than report.json" in capsys.readouterr().out


def test_every_false_statement_is_found(copies, capsys):
    directory = copies["quantized"]

    def problems(*options: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(["verify", str(directory), *options])
        assert exit_.value.code == 1
        return capsys.readouterr().out

    _, report = read_report(directory)
    layer = report.layers[1]
    layers = (dataclasses.replace(layer, num_zeros=layer.num_zeros + 1), *report.layers[2:])

    def changed(**changes: object) -> None:
        change(directory, **changes)
        main(["report", str(directory)])  # the HTML report says the same

    changed(layers=layers)
    assert f"{layer.name}: num_zeros is {layer.num_zeros}, the report says {layer.num_zeros + 1}." in problems()
    models = [dataclasses.replace(m, metrics={name: v + 0.01 for name, v in m.metrics.items()}) for m in report.models]
    changed(layers=report.layers, models=tuple(models))
    printed = problems("--test")
    assert "INT8 ONNX: metrics.test/acc is" in printed
    assert "fitted: metrics.test/acc is" in printed
    models = [dataclasses.replace(m, num_parameters=7, macs=8) for m in report.models]
    histograms = tuple(dataclasses.replace(histogram, num_zeros=9) for histogram in report.histograms)
    changed(models=tuple(models), histograms=histograms)
    printed = problems("--test")
    for number, name in ((7, "fitted: num_parameters"), (8, "fitted: macs"), (9, "histogram of ")):
        assert name in printed
        assert f", the report says {number}." in printed
    changed(models=report.models, histograms=report.histograms)
    with (directory / "model.onnx").open("ab") as file:
        file.write(b"\0")
    assert "the report says" in problems()
    (directory / "model.packed").unlink()
    assert "model.packed is missing." in problems()


def test_one_file_is_verified(copies, capsys, error_message):
    main(["verify", str(copies["quantized"] / "model.onnx")])
    assert "Verified: 1 files" in capsys.readouterr().out
    (copies["quantized"] / "other.onnx").touch()
    assert "names no such file" in error_message("verify", str(copies["quantized"] / "other.onnx"))


def test_a_quantized_run_is_exported(copies, capsys):
    directory = copies["quantized"]
    main(["export", str(directory), "--formats=packed,onnx,program", "--out=files"])
    capsys.readouterr()
    assert sorted(path.name for path in Path("files").iterdir()) == ["model.onnx", "model.packed", "model.pt2"]
    for name in ("model.packed", "model.onnx"):
        assert Path("files", name).read_bytes() == (directory / name).read_bytes(), f"{name} is not the run's"


def test_a_network_without_its_channels_is_exported_from_a_checkpoint(copies, capsys):
    directory = copies["channels"]
    (checkpoint,) = directory.glob("checkpoints/*.ckpt")
    main(["export", str(checkpoint), "--out=files"])
    packed = lc.load_packed("files/model.packed")
    written = lc.load_packed(directory / "model.packed")
    assert {name: t.shape for name, t in packed.items()} == {name: t.shape for name, t in written.items()}
    assert all(torch.equal(packed[name], written[name]) for name in packed)
    session = onnxruntime.InferenceSession("files/model.onnx")
    assert session.run(None, {session.get_inputs()[0].name: torch.zeros(3, 1, 8, 8).numpy()})[0].shape == (3, 10)
    # Without --out nothing is written over.
    before = sorted(directory.iterdir())
    main(["export", str(directory), "--formats=packed"])
    assert sorted(set(directory.iterdir()) - set(before)) == [directory / "export"]


def test_wrong_formats_are_named(copies, error_message):
    message = error_message("export", str(copies["quantized"]), "--formats=onxx")
    assert (
        "--formats=onxx (did you mean 'onnx'?): choose from packed, onnx, half, openvino, coreml, litert, " in message
    )


def test_a_missing_checkpoint_is_named(copies, error_message):
    shutil.rmtree(copies["quantized"] / "checkpoints")
    assert "does not exist: give a run with a checkpoint" in error_message("export", str(copies["quantized"]))


@pytest.mark.parametrize("command", ["report", "compare", "recipes", "--version"])
def test_light_commands_load_no_torch(command, copies):
    arguments = [command, *([str(copies["quantized"])] if command in ("report", "compare") else [])]
    program = f"import sys; from lightning_compress.cli import main; main({arguments!r}); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_the_first_words_come_before_torch(recipe):
    program = "from lightning_compress.cli import main; main(['run', 'small.yaml', '--pruning.sparsity=2'])"
    begin = time.monotonic()
    with subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr.readline() == "lightning-compress run small.yaml: loading PyTorch\n"
        first = time.monotonic() - begin
        process.communicate()
    assert first < 0.5 * (time.monotonic() - begin), "the first words came late"
