"""Recipes that continue with the network of another one."""

from pathlib import Path

import pytest
import torch

import lightning_compress as lc
from lightning_compress.cli import main
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
