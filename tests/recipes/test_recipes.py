"""Shipped recipes: they parse, survive a round trip, have comments, and are documented."""

import re
import struct
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_compress.cli import main
from lightning_compress.cli.compression import TECHNIQUES
from lightning_compress.cli.runs import ChildRun, RunCLI
from lightning_compress.reporting.run_report import read_report

ROOT = Path(__file__).parents[2]
RECIPES = sorted(p for p in (ROOT / "recipes").glob("**/*.yaml") if p.parent.name != "sweeps")


def names(paths: list[Path]) -> list[str]:
    return [path.relative_to(ROOT / "recipes").as_posix() for path in paths]


def write_mnist(folder: Path, num_images: int = 260) -> None:
    """Images of noise in the format of MNIST."""
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        images = torch.randint(256, (num_images, 28, 28), dtype=torch.uint8)
        header = struct.pack(">4i", 0x803, *images.shape)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(header + images.numpy().tobytes())
        labels = torch.arange(num_images, dtype=torch.uint8) % 10
        header = struct.pack(">2i", 0x801, num_images)
        (folder / f"{split}-labels-idx1-ubyte").write_bytes(header + labels.numpy().tobytes())


@pytest.fixture
def short_runs(monkeypatch, workdir):
    """Runs that a recipe depends on are limited to one batch: building a recipe executes them."""
    write_mnist(workdir / "data/MNIST/raw")
    short = ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.enable_progress_bar=false"]
    short += [f"--trainer.limit_{kind}_batches=1" for kind in ("train", "val", "test")]
    init = ChildRun.__init__

    def init_short(self, parent, name, args):
        init(self, parent, name, [*args, *short])

    monkeypatch.setattr(ChildRun, "__init__", init_short)


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_round_trip(path, workdir):
    def build(file: Path) -> RunCLI:
        return RunCLI(args=[f"--config={file}", "--trainer.accelerator=cpu"], run=False)

    cli = build(path)
    (workdir / "saved.yaml").write_text(cli.parser.dump(cli.config, skip_none=False))
    again = build(workdir / "saved.yaml")
    assert again.parser.dump(again.config) == cli.parser.dump(cli.config)
    assert [type(c) for c in again.trainer.callbacks] == [type(c) for c in cli.trainer.callbacks]
    for key in TECHNIQUES:
        assert repr(again.config_init[key]).partition(" at ")[0] == repr(cli.config_init[key]).partition(" at ")[0]


@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_header_and_comments(path):
    text = path.read_text()
    name = path.relative_to(ROOT).as_posix()
    first_line, _, rest = text.partition("\n")
    assert re.match(r"# [A-Z].*\.$", first_line)
    assert f"#   lightning-compress run {name}" in rest.partition("\n\n")[0]
    assert "offline: true" in text


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("path", RECIPES, ids=names(RECIPES))
def test_every_recipe_can_be_swept(path, workdir):
    """``${args}`` of a W&B sweep are flags with dotted keys."""
    # The optimizer is configured in the student if that is a module of its own.
    owner = "model.student" if "student:\n      class_path" in path.read_text() else "model"
    flags = [
        "--pruning.sparsity=0.75",
        "--pruning.schedule.end=0.25",
        f"--{owner}.optimizer.lr=0.5",
        "--seed_everything=3",
    ]
    cli = RunCLI(args=[f"--config={path}", "--trainer.accelerator=cpu", *flags], run=False)
    assert cli.config_init.pruning.sparsity == 0.75
    assert cli.config_init.pruning.schedule.end == 0.25
    model = cli.config.model.init_args
    trained = model.student.init_args if owner == "model.student" else model
    assert trained.optimizer.init_args.lr == 0.5
    assert cli.config.seed_everything == 3


def test_digits_runs_as_it_is(workdir, capsys):
    """The complete command, with a few batches."""
    main(["run", "recipes/digits/prune.yaml", "--trainer.max_epochs=2", "--trainer.limit_train_batches=4"])
    (run,) = (workdir / "runs/digits-prune").iterdir()
    assert "90.00%" in (run / "report.txt").read_text()
    assert len(list(run.glob("wandb/offline-run-*"))) == 2
    assert (run / "checkpoints/last.ckpt").is_file()


@pytest.mark.slow
def test_digits_is_good(workdir, capsys):
    main(["run", "recipes/digits/prune.yaml"])
    (run,) = (workdir / "runs/digits-prune").iterdir()
    _, report = read_report(run)
    dense = report.baseline.metrics["test/acc"]
    assert dense > 0.97
    assert report.result.metrics["test/acc"] > dense - 0.015


@pytest.mark.slow
def test_deep_compression_is_small_and_good(workdir):
    """About a minute on two cores."""
    main(["run", "recipes/digits/deep_compression.yaml"])
    (run,) = (workdir / "runs/digits-deep_compression").iterdir()
    _, report = read_report(run)
    assert report.sizes[0].num_bytes / report.file("model.packed").num_bytes > 13
    assert report.result.title == "INT8 ONNX"
    assert report.result.metrics["test/acc"] > report.baseline.metrics["test/acc"] - 0.015
    assert not report.failures


FEW = [f"--trainer.limit_{kind}_batches=2" for kind in ("train", "val", "test")] + ["--trainer.max_epochs=1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "arguments", "titles"),
    [
        ("segmentation/prune", FEW, ["dense baseline", "fitted", "packed file"]),
        ("token_classification/prune", FEW, ["dense baseline", "fitted", "packed file"]),
        (
            "imagenet/quantize",
            ["--data.dry_run=true", "--data.batch_size=2", "--data.num_workers=0", "--trainer.max_steps=2"],
            ["initial model", "fitted", "packed file", "FP32 ONNX", "INT8 ONNX"],
        ),
    ],
)
def test_further_tasks_run(recipe, arguments, titles, workdir):
    pytest.importorskip({"se": "segmentation_models_pytorch", "to": "transformers", "im": "onnxruntime"}[recipe[:2]])
    main(["run", f"recipes/{recipe}.yaml", *arguments])
    (run,) = (workdir / "runs" / recipe.replace("/", "-")).iterdir()
    _, report = read_report(run)
    assert [model.title for model in report.models] == titles
    assert not report.failures
    if "prune" in recipe:
        assert report.weights.sparsity > 0.7
        assert {"test/acc", "test/iou", "test/loss"} == set(report.result.metrics)


@pytest.mark.slow
def test_a_detector_is_distilled_pruned_and_written_for_tensorrt_and_openvino(workdir, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("openvino")
    main(["run", "recipes/detection/integers.yaml", *FEW])
    (run,) = (workdir / "runs/detection-integers").iterdir()
    _, report = read_report(run)
    assert [m.title for m in report.models] == [
        "no-KD baseline", "distilled", "packed file", "FP32 ONNX", "INT8 ONNX",
    ]  # fmt: skip
    assert not report.failures
    assert {"test/ap50", "test/loss"} == set(report.result.metrics)
    capsys.readouterr()
    main(["export", str(run), "--formats=onnx,openvino", "--out=files"])
    graph = onnx.load("files/model.onnx").graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    # TensorRT takes INT8 with zero point 0.
    quantizing = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert quantizing
    assert all(constants[node.input[2]].dtype == "int8" and not constants[node.input[2]].any() for node in quantizing)
    weights = [values for values in constants.values() if values.dtype == "int8" and values.ndim == 4]
    assert len(weights) == sum(node.op_type == "Conv" for node in graph.node)
    assert sum((w == 0).sum() for w in weights) > 0.55 * sum(w.size for w in weights)
    # In OpenVINO, every convolution computes in INT8.
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("openvino.onnx: ")]
    assert "silu" in line
    assert "conv2d" not in line


@pytest.mark.slow
def test_any_folder_of_images_runs(workdir):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = workdir / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(8):
                pixels = torch.randint(256, (50, 40, 3), dtype=torch.uint8)
                Image.fromarray(pixels.numpy()).save(folder / f"{i}.png")
    arguments = ["--data.root=images", "--model.num_classes=2", "--data.image_size=64", "--data.batch_size=8"]
    main(["run", "recipes/image_folder/prune.yaml", *arguments, "--data.num_workers=0", "--trainer.max_epochs=2"])
    (run,) = (workdir / "runs/image_folder-prune").iterdir()
    _, report = read_report(run)
    assert report.result.num_samples == 16
    assert report.weights.sparsity > 0.7
    assert not report.failures
