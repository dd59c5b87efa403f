"""The command ``sensitivity``: the measurement, and the choice of bits as a configuration."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
import yaml
from jsonargparse import ArgumentParser

import lightning_compress as lc
from lightning_compress.cli import main
from lightning_compress.reporting.run_report import RunReport, read_report

MEASURE = ("sensitivity", "--config=small.yaml", "--num_batches=1", "--bits=2,8", "--out=out")


def measure(*arguments: str) -> list[str]:
    """The command with further options, which replace those that it has already."""
    given = {argument.partition("=")[0] for argument in arguments}
    return [*(option for option in MEASURE if option.partition("=")[0] not in given), *arguments]


def rises(folder: str = "out") -> list[dict[str, str]]:
    return list(csv.DictReader(Path(folder, "sensitivity.csv").read_text().splitlines()))


def test_measures_and_writes(recipe, capsys):
    pytest.importorskip("matplotlib")
    main(MEASURE)
    printed = capsys.readouterr().out
    assert "model.classifier.4" in printed
    assert "All files of this run are in out." in printed
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "sensitivity-heat-map.png",
        "sensitivity.csv",
        "sensitivity.png",
    ]
    assert [path.name for path in Path().iterdir() if path.name != "small.yaml"] == ["out"]
    assert [(row["layer"], row["bits"]) for row in rises()][:2] == [
        ("model.features.0", "2"),
        ("model.features.0", "8"),
    ]


WATCHING = """
import lightning_compress as lc
import torch

class Watching(lc.ClassificationModule):
    seen = []

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] * 0 + 3, batch[1]

    def training_step(self, batch, batch_idx):
        image = batch[0].unique().tolist()
        self.seen.append((self.training, torch.is_grad_enabled(), self.trainer.num_devices, *image))
        self.log("watched", 1.0)
        return super().training_step(batch, batch_idx)
"""


@pytest.mark.filterwarnings("ignore:You have overridden `on_after_batch_transfer`")
def test_the_training_step_is_run_without_training(recipe):
    Path("watching.py").write_text(WATCHING)
    main(measure("--num_batches=2", "--model.class_path=watching.Watching", "--trainer.devices=2"))
    seen = sys.modules["watching"].Watching.seen
    assert set(seen) == {(False, False, 1, 3.0)}
    # Once in FP32, once for each of two numbers of bits of seven layers, and once more to trace the calls.
    assert len(seen) == 2 * (1 + 2 * 7) + 1


def test_the_weights_of_a_checkpoint_are_measured(recipe):
    main(["fit", "--config=small.yaml", "--pruning=null", "--trainer.default_root_dir=fit"])
    (path,) = Path("fit/checkpoints").glob("*.ckpt")
    main(MEASURE)
    start = rises()
    main([*MEASURE[:-1], "--out=trained", f"--ckpt_path={path}"])
    assert [row["layer"] for row in rises("trained")] == [row["layer"] for row in start]
    assert rises("trained") != start


def test_a_choice_is_a_recipe_for_training(recipe, capsys):
    main([*MEASURE, "--mean_bits=5"])
    printed = capsys.readouterr().out
    written = Path("out/quantization.yaml").read_text()
    assert "--config=out/quantization.yaml" in printed
    assert written.startswith("# ")
    sizes = {row["layer"]: int(row["num_weights"]) for row in rises()}
    parser = ArgumentParser()
    parser.add_argument("--quantization", type=lc.QuantizationAwareTraining | None, default=None)
    callback = parser.instantiate(parser.parse_object(yaml.safe_load(written))).quantization
    assert callback.weights.keys() == sizes.keys()
    assert set(callback.weights.values()) == {lc.Int(2), lc.Int(8)}
    taken = sum(size * callback.weights[layer].bits for layer, size in sizes.items())
    assert taken <= 5 * sum(sizes.values())
    assert f"{taken // 8:,} bytes" in written


def test_heat_maps_are_added_to_the_report_of_a_run(recipe, capsys):
    pytest.importorskip("matplotlib")
    Path("run").mkdir()
    RunReport(name="small", command="", created="").write(Path("run"))
    for _ in range(2):
        main([*MEASURE, "--sparsities=0.5,0.9", "--report=run", "--targets.include=[model.classifier]"])
    assert "The report of run shows the sensitivity: run/report.html" in capsys.readouterr().out
    found = read_report("run")[1].sensitivities
    assert [each.technique for each in found] == ["quantization", "pruning"]
    assert [list(each.layers[0].delta_losses) for each in found] == [["2 bits", "8 bits"], ["50 %", "90 %"]]
    assert found[0].loss == pytest.approx(found[1].loss)
    assert [layer.layer for layer in found[1].layers] == [f"model.classifier.{i}" for i in (0, 2, 4)]
    assert [row["delta_loss"] for row in rises()][:1] == [str(found[0].layers[0].delta_losses["2 bits"])]
    assert "Sensitivity to pruning" in Path("run/report.html").read_text()
    assert Path("out/sensitivity-pruning-heat-map.png").is_file()


def test_existing_files_are_kept(recipe):
    for _ in range(2):
        main([*MEASURE, "--max_bytes=1000000"])
    names = {path.stem for path in Path("out").iterdir() if not path.stem.endswith("heat-map")}
    assert names == {"sensitivity", "sensitivity-2", "quantization", "quantization-2"}


def test_targets_can_be_named(recipe):
    main([*MEASURE, "--targets.include=[model.classifier]"])
    assert {row["layer"] for row in rises()} == {f"model.classifier.{i}" for i in (0, 2, 4)}


def test_without_matplotlib_the_rest_is_written(recipe, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    main(MEASURE)
    assert 'pip install "lightning-compress[export]"' in capsys.readouterr().out
    assert [path.name for path in Path("out").iterdir()] == ["sensitivity.csv"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bits=2,x"], "--bits=2,x must be comma-separated integers"),
        (["--bits=9"], "Int(bits=9) must be an integer from 2 to 8"),
        (["--num_batches=0"], "there is no batch"),
        (["--num_batches=many"], "num_batches=many must be an integer"),
        (["--sparsities=1.5"], "sparsity=1.5 is the fraction of zeros"),
        (["--sparsities=x"], "--sparsities=x must be comma-separated fractions"),
        (["--report=nowhere"], "nowhere cannot be read"),
        (["--mean_bits=4", "--max_bytes=10"], "either --max_bytes or --mean_bits"),
        (["--mean_bits=1"], "mean_bits=1.0 is impossible: with the fewest bits of each layer it is 114448 bytes"),
        (["--targets.include=[encoder]"], "'encoder' matches no layer"),
        (["--ckpt_path=none.ckpt"], "ckpt_path=none.ckpt does not exist"),
        (["--model.class_path=by_hand.ByHand"], "ByHand uses manual optimization"),
    ],
)
def test_error_messages(error_message, arguments, words):
    Path("by_hand.py").write_text(
        "import lightning_compress as lc\n\nclass ByHand(lc.ClassificationModule):\n"
        "    @property\n    def automatic_optimization(self):\n        return False\n"
    )
    assert words in error_message(*measure(*arguments))


def test_errors_of_the_users_code_keep_their_traceback(recipe):
    Path("fails_in_training.py").write_text(
        "import lightning_compress as lc\n\nclass Broken(lc.ClassificationModule):\n"
        "    def training_step(self, batch, batch_idx):\n        raise ValueError('mine')\n"
    )
    with pytest.raises(ValueError, match="mine"):
        main([*MEASURE, "--model.class_path=fails_in_training.Broken"])
