"""The benchmark of a GPU, in small on the CPU: every measurement, its fields, and the second call that skips them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision.transforms.functional import to_pil_image

import lightning_compress as lc
import lightning_compress.models.networks  # registers resnet20_cifar with timm

SCRIPT = Path(__file__).with_name("gpu.py")
STEP_FIELDS = {"step_ms", "ratio", "quartiles", "rounds", "peak_mb", "host_syncs_per_step", "seconds"}
ACCURACY_FIELDS = {"accuracy", "dense", "epochs", "seed", "seconds_per_epoch", "literature", "seconds"}


def call(out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    root = Path(lc.__file__).parent.parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, str(SCRIPT), "--out", str(out), "--device", "cpu", "--tiny", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, env=environment, cwd=out.parent)


def results(out: Path) -> dict[str, Any]:
    return json.loads(out.read_text())["results"]


def write_images(folder: Path) -> None:
    """Ten classes of two training images and one test image of noise."""
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 2), ("test", 1)):
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
            for i in range(number):
                noise = torch.randint(256, (3, 32, 32), generator=generator, dtype=torch.uint8)
                to_pil_image(noise).save(folder / split / str(label) / f"{i}.png")


def write_weights(folder: Path) -> None:
    for name in ("resnet20", "resnet56"):
        network = timm.create_model(f"{name}_cifar", num_classes=10)
        save_file(dict(network.state_dict()), folder / f"cifar10_{name}.safetensors")


@pytest.mark.slow
def test_steps_and_latency_are_measured_once(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    first = call(out)
    assert first.returncode == 0, first.stdout + first.stderr
    found = results(out)
    steps = {name: result for name, result in found.items() if name.startswith("steps/")}
    techniques = {"masked", "two_of_four", "clustered", "qat", "qat_frozen", "masked_clustered_qat", "distilled"}
    assert {name.split("/")[2] for name in steps} == techniques
    assert len(steps) == 2 * len(techniques)
    for name, result in steps.items():
        assert set(result) == STEP_FIELDS, name
        assert result["ratio"]["plain"] > 0
        lower, upper = result["quartiles"]["plain"]
        assert lower <= result["ratio"]["plain"] <= upper
        assert set(result["peak_mb"]) == set(result["host_syncs_per_step"]) == set(result["step_ms"])
    assert set(found["steps/test_resnet/distilled"]["ratio"]) == {"plain", "both"}
    compiled = {name: result["graph_breaks"] for name, result in found.items() if name.startswith("compile/")}
    assert compiled == {"compile/test_resnet/qat": 0, "compile/test_vit/qat": 0}
    latencies = {name: result for name, result in found.items() if name.startswith("semi_structured/")}
    assert len(latencies) == 2
    if not torch.cuda.is_available():
        assert all("there is no CUDA device" in result["not_measured"] for result in latencies.values())

    written = out.read_text()
    second = call(out)
    assert (second.returncode, second.stdout, out.read_text()) == (0, "", written)
    stored = json.loads(written)
    stored["results"]["steps/test_vit/masked"] = {"error": "out of memory", "seconds": 1.0}
    out.write_text(json.dumps(stored))
    third = call(out)
    assert [line.partition(":")[0] for line in third.stdout.splitlines()] == ["steps/test_vit/masked"]
    assert set(results(out)["steps/test_vit/masked"]) == STEP_FIELDS


@pytest.mark.slow
def test_accuracies_stand_beside_the_literature(tmp_path: Path) -> None:
    write_images(tmp_path / "data")
    write_weights(tmp_path)
    options = ("--data", str(tmp_path / "data"), "--weights", str(tmp_path), "--epochs", "2", "--prune-rounds", "2")
    out = tmp_path / "gpu.json"
    first = call(out, *options, "--workers", "0", "--only", "accuracy/*")
    assert first.returncode == 0, first.stdout + first.stderr
    found = results(out)
    assert len(found) == 10
    for name, result in found.items():
        assert set(result) >= ACCURACY_FIELDS, name
        assert 0 <= result["accuracy"] <= 100
        assert all(each["source"] and each["accuracy"] > 90 for each in result["literature"])
    assert abs(found["accuracy/resnet56/rewound_97.7_deep"]["sparsity"] - 0.977) < 1e-4
    assert 2.0 < found["accuracy/resnet56/filters_2.13_deep"]["times_fewer_macs"] < 2.4


@pytest.mark.slow
def test_what_would_take_too_long_is_left_for_the_next_call(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    assert call(out, "--only", "semi_structured/*", "--minutes", "0").returncode == 3
    assert call(out, "--only", "semi_structured/*/batch_1").returncode == 0
    assert len(results(out)) == 1
    stored = json.loads(out.read_text())
    stored["environment"]["torch"] = "1.0"
    out.write_text(json.dumps(stored))
    other = call(out)
    assert other.returncode == 1
    assert "was written in another environment" in other.stdout


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_command_says_so(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), "--out", str(tmp_path / "gpu.json")]
    refused = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert refused.returncode == 2
    assert "there is no CUDA device: run on one, or with --device cpu --tiny" in refused.stderr
