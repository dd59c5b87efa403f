"""Recipes that continue with the network of another one."""

import fcntl
import functools
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch import Trainer

import lightning_compress as lc
import lightning_compress.data
from lightning_compress.cli import main, runs
from lightning_compress.cli.cut_chains import find_cut_run, release
from lightning_compress.reporting.run_report import read_report
from tests.cli.test_run import the_run, titles

CHANNELS = "pruning: {sparsity: 0.5, pattern: {class_path: lightning_compress.Channels}, targets: {module: model}}"
UNPRUNED = "pruning: {sparsity: 0.5, schedule: {end: 0.5}}"


@pytest.fixture
def stages(recipe: Path) -> Path:
    """Channel pruning, then fine-tuning, then quantization to INT8."""
    text = recipe.read_text()
    Path("first.yaml").write_text(text.replace(UNPRUNED, CHANNELS))
    Path("second.yaml").write_text(text.replace(UNPRUNED, "after: first.yaml"))
    third = "after: second.yaml\nquantization: {targets: {module: model}}"
    Path("third.yaml").write_text(text.replace(UNPRUNED, third))
    return recipe


def network(directory: Path) -> torch.nn.Module:
    """The plain network, made from the files of a run."""
    net = lc.ClassificationModule("conv4", 10, model_kwargs={"in_chans": 1, "img_size": 8}).model
    lc.RemovalLog.load(directory / "removal.json").replay_(net)
    lc.load_packed(directory / "model.packed", into=net)
    return net


@pytest.mark.slow
def test_three_stages_in_one_command(stages):
    main(["run", "third.yaml"])
    run = the_run("third")
    assert titles(run) == ["first", "second", "fitted", "packed file", "FP32 ONNX", "INT8 ONNX"]
    sizes = {size.name: size.num_bytes for size in read_report(run)[1].sizes}
    assert list(sizes) == ["dense", "channels removed", "quantized", "entropy-coded"]
    assert sizes["dense"] == 4 * 459_018
    assert sizes["channels removed"] < 0.5 * sizes["dense"]
    first, second = network(run / "before/before"), network(run / "before")
    assert sum(p.numel() for p in first.parameters()) < 0.4 * 459_000
    shapes = [{name: p.shape for name, p in net.named_parameters()} for net in (first, second)]
    assert shapes[0] == shapes[1]
    assert not torch.equal(first.classifier[0].weight, second.classifier[0].weight), "it was trained on"
    assert (run / "model.onnx").stat().st_size < 0.4 * 459_000
    assert lc.RemovalLog.load(run / "removal.json") == lc.RemovalLog.load(run / "before/before/removal.json")


def test_the_report_has_the_network_without_the_channels(stages):
    main(["run", "first.yaml"])
    _, report = read_report(the_run("first"))
    masked, removed, packed = report.models
    assert [m.title for m in report.models] == ["fitted, channels masked", "channels removed", "packed file"]
    assert masked.metrics["test/acc"] == removed.metrics["test/acc"] == packed.metrics["test/acc"], (
        "it computes the same"
    )
    assert removed.num_parameters < 0.5 * masked.num_parameters
    assert removed.macs < 0.6 * masked.macs
    assert masked.timing.runtime == removed.timing.runtime == "PyTorch"
    assert [size.name for size in report.sizes][:2] == ["dense", "channels removed"]
    assert report.sizes[1].num_bytes == removed.num_bytes


@pytest.mark.parametrize(
    ("given", "own", "expected"), [("ours", "data", "ours"), ("ours", "theirs", "theirs"), ("data", "theirs", "theirs")]
)
def test_a_recipe_without_a_folder_of_its_data_reads_that_of_the_command(given, own, expected):
    ours, theirs = (
        Namespace(class_path="lightning_compress.data.MNISTDataModule", init_args=Namespace(root=root))
        for root in (given, own)
    )
    runs._share_folder(ours, theirs)
    assert theirs.init_args.root == expected
    assert ours.init_args.root == given


class PassesOn(lc.data.MNISTDataModule):
    """Names none of its arguments."""

    def __init__(self, **options):
        super().__init__(**options)


def test_the_folder_of_a_class_that_passes_its_arguments_on_is_left_alone():
    config = Namespace(class_path=f"{PassesOn.__module__}.PassesOn", init_args=Namespace(root="data"))
    runs._share_folder(Namespace(class_path=config.class_path, init_args=Namespace(root="ours")), config)
    assert config.init_args.root == "data"


def test_an_accuracy_at_chance_level_is_a_warning(stages):
    still = "optimizer: {class_path: torch.optim.SGD, init_args: {lr: 1.0e-9}}, model: conv4"
    Path("first.yaml").write_text(Path("first.yaml").read_text().replace("model: conv4", still))
    with pytest.warns(UserWarning, match="is at chance level for 10 classes: prune less"):
        main(["run", "first.yaml", "--trainer.limit_test_batches=1.0"])


def test_a_finished_stage_is_not_run_again(stages):
    main(["run", "first.yaml"])
    before = the_run("first")
    main(["run", "second.yaml", f"--after={before}"])
    (again,) = Path("runs/second").iterdir()
    assert titles(again) == ["fitted", "packed file"]
    assert not (again / "before").exists()
    main(["run", "second.yaml"])
    whole = next(run for run in Path("runs/second").iterdir() if run != again)
    ends = [network(run).state_dict() for run in (again, whole)]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_stage_is_found_beside_the_recipe_that_names_it(stages):
    Path("below").mkdir()
    for name in ("first.yaml", "second.yaml"):
        Path(name).rename(f"below/{name}")
    main(["run", "below/second.yaml"])
    assert titles(the_run("second"))[0] == "first"


def test_resume_within_a_stage(stages):
    main(["run", "first.yaml"])
    after = f"--after={the_run('first')}"
    main(["run", "second.yaml", after, "--trainer.max_epochs=2"])
    (whole,) = Path("runs/second").iterdir()
    main(["run", "second.yaml", after, "--trainer.max_epochs=1"])
    (half,) = (run for run in Path("runs/second").iterdir() if run != whole)
    checkpoint = next(half.glob("checkpoints/*.ckpt"))
    main(["run", "second.yaml", after, "--trainer.max_epochs=2", f"--ckpt_path={checkpoint}"])
    (resumed,) = (run for run in Path("runs/second").iterdir() if run not in (whole, half))
    # The values are not those of the whole run: Lightning begins the shuffling of a resumed run anew.
    assert {name: p.shape for name, p in network(resumed).named_parameters()} == {
        name: p.shape for name, p in network(whole).named_parameters()
    }


def test_a_student_continues_with_it(stages, capsys):
    main(["run", "first.yaml"])
    text = Path("second.yaml").read_text().replace("model: conv4", "student: conv4")
    Path("distilled.yaml").write_text(text.replace("ClassificationModule", "DistillationModule"))
    main(["run", "distilled.yaml", "--teacher=small.yaml", f"--after={the_run('first')}"])
    assert network(the_run("distilled")).features[0].out_channels < 64


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "second.yaml", "--after=nowhere"], "Unknown recipe 'nowhere'"),
        (
            ["run", "second.yaml", "--after=runs"],
            "model.packed not found; give the directory of a finished run.",
        ),
        (
            ["run", "second.yaml", "--after=cut/off"],
            "of a finished run, or run its recipe again with --after=cut/off/before, which is finished.",
        ),
    ],
)
def test_error_messages(stages, error_message, arguments, words):
    Path("runs").mkdir()
    Path("cut/off/before").mkdir(parents=True)
    Path("cut/off/before/model.packed").touch()
    assert words in error_message(*arguments)


def test_masked_channels_of_a_quantized_network_are_a_warning(stages):
    text = Path("first.yaml").read_text()
    Path("both.yaml").write_text(text + "\nquantization: {targets: {module: model}}\n")
    with pytest.warns(UserWarning, match="Channels are masked but not removed.*: quantize in a recipe of its own"):
        main(["run", "both.yaml"])


def test_another_network(stages, error_message):
    main(["run", "first.yaml"])
    words = error_message("run", "second.yaml", f"--after={the_run('first')}", "--model.model=lenet300_100")
    assert "no module of the model has the state dict keys of model.packed" in words


# The process ends itself without a trace, at a batch of one of its stages.
KILLED = """
import os, signal, sys
from lightning.pytorch import Callback
from lightning_compress.cli import main
from lightning_compress.cli.runs import RunCLI

make = RunCLI.instantiate_trainer

class End(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch * 2 + batch_idx == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)

def make_ending(self, **kwargs):
    trainer = make(self, **kwargs)
    stage = "/".join(part for part in self.directory.parts if part in ("before", "teacher", "baseline"))
    if stage == sys.argv[2]:
        trainer.callbacks.append(End())
    return trainer

RunCLI.instantiate_trainer = make_ending
main(sys.argv[3:])
"""


def killed(batch: int, stage: str, *arguments: str) -> None:
    """Runs a command in a process that is killed at a batch of one of its stages, such as ``"before/before"``."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(batch), stage, *arguments], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def modified(directory: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in directory.rglob("*") if path.is_file()}


def test_a_cut_chain_goes_on_by_the_same_command(stages, capsys):
    command = ["run", "second.yaml", "--trainer.logger=CSVLogger"]
    killed(1, "", *command)
    cut = the_run("second").absolute()
    assert not (cut / "model.packed").exists()
    before = modified(cut / "before")
    main(command)
    assert the_run("second").absolute() == cut, "no second directory"
    assert modified(cut / "before") == before, "the first stage was run again"
    assert f"going on with {cut}, which was cut off" in capsys.readouterr().err
    assert titles(cut) == ["first", "fitted", "packed file"]
    first = network(cut).state_dict()
    # A finished run is not gone on with, and the one that was cut is that of an uninterrupted command.
    main(command)
    (whole,) = (run for run in Path("runs/second").iterdir() if run.absolute() != cut)
    assert all(torch.equal(value, first[name]) for name, value in network(whole).state_dict().items())
    assert "going on" not in capsys.readouterr().err


@pytest.mark.slow
def test_a_chain_that_was_cut_in_a_stage_in_between_goes_on_there(stages):
    command = ["run", "third.yaml", "--quantization=null", "--pruning={sparsity: 0.5}"]
    killed(1, "before", *command)
    cut = the_run("third")
    first = modified(cut / "before/before")
    main(command)
    assert titles(the_run("third")) == ["first", "second", "fitted", "packed file"]
    assert modified(cut / "before/before") == first


@pytest.mark.slow
def test_a_stage_goes_on_from_its_checkpoint(stages, monkeypatch):
    command = ["run", "second.yaml", "--trainer.max_epochs=3", "--trainer.default_root_dir=here"]
    killed(2, "", *command)
    (checkpoint,) = Path("here/checkpoints").glob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 2
    begun, fit = [], Trainer.fit

    # The parser reads the signature.
    @functools.wraps(fit)
    def watched(self, *args, **kwargs):
        begun.append(kwargs["ckpt_path"])
        fit(self, *args, **kwargs)

    monkeypatch.setattr(Trainer, "fit", watched)
    main(command)
    assert begun == [str(checkpoint)], "only the second stage, from its checkpoint"
    assert titles(Path("here")) == ["first", "fitted", "packed file"]


@pytest.mark.slow
def test_a_trained_teacher_is_kept(stages, recipe):
    text = recipe.read_text().replace("model: conv4", "student: conv4")
    Path("distilled.yaml").write_text(
        "teacher: small.yaml\n" + text.replace("ClassificationModule", "DistillationModule")
    )
    command = ["run", "distilled.yaml"]
    killed(1, "", *command)
    teacher = modified(the_run("distilled") / "teacher")
    main(command)
    assert modified(the_run("distilled") / "teacher") == teacher
    assert titles(the_run("distilled")) == ["teacher", "distilled", "packed file"]


def test_a_changed_stage_or_a_running_chain_is_not_gone_on_with(stages):
    main(["run", "second.yaml"])
    run = the_run("second")
    stage = run / "stage.json"
    stage.write_text(stage.read_text().replace('"finished": true', '"finished": false'))
    digest = json.loads(stage.read_text())["digest"]
    with (run / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert find_cut_run(run.parent, digest) is None, "another process runs in it"
    assert find_cut_run(run.parent, "another") is None
    assert find_cut_run(run.parent, digest) == run
    release(run)
    Path("first.yaml").write_text(Path("first.yaml").read_text() + "# another\n")
    main(["run", "second.yaml"])
    assert len(list(Path("runs/second").iterdir())) == 2
