"""Files that are run in LiteRT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.export import litert
from tests.export.nets import SUBJECTS, outputs
from tests.quantization.nets import Classified

pytest.importorskip("litert_torch", reason="needs the extra litert")


def interpreter(path: Path) -> Any:
    from ai_edge_litert.interpreter import Interpreter

    found = Interpreter(str(path))
    found.allocate_tensors()
    return found


def operators(path: Path) -> list[str]:
    """Operators of a file, with an F before those that return floats."""
    runtime = interpreter(path)
    dtypes = {details["index"]: details["dtype"] for details in runtime.get_tensor_details()}
    return [
        ("" if dtypes[each["outputs"][0]] is np.int8 else "F") + each["op_name"]
        for each in runtime._get_ops_details()
        if each["op_name"] != "DELEGATE"
    ]


@pytest.mark.parametrize("name", ["residual", "pooled", "named"])
def test_every_activation_is_within_1_lsb_and_layers_compute_in_int8(name: str, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    torch.manual_seed(0)
    model = lc.calibrate(subject.make(), [subject.batch(64)], backend=lc.LiteRT())
    file = lc.export_litert(model, tmp_path / "model.tflite", subject.batch(2))
    assert file.steps
    assert max(file.steps.values()) <= 1
    assert file.difference is not None
    assert file.difference < 0.02
    assert file.num_bytes == file.path.stat().st_size
    names = operators(file.path)
    assert not [name for name in names if name in ("FCONV_2D", "FDEPTHWISE_CONV_2D", "FFULLY_CONNECTED")]
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    assert sum(name in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED") for name in names) == len(layers)
    if name == "residual":
        assert file.unquantized_ops == ("act.hardswish", "sigmoid")
        assert "FEXP" in names  # the sigmoid
        assert "ADD" in names


def test_a_learned_token_has_the_scale_of_its_concatenation(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 4, 8)
    model = lc.calibrate(Classified(), [tokens], backend=lc.LiteRT())
    file = lc.export_litert(model, tmp_path / "model.tflite", tokens)
    assert file.steps
    assert max(file.steps.values()) <= 1


def test_the_outputs_keep_their_names_and_scales(tmp_path: Path) -> None:
    subject = SUBJECTS["named"]
    model = subject.quantized()
    file = lc.export_litert(model, tmp_path / "model.tflite", subject.batch(2))
    runner = interpreter(file.path).get_signature_runner()
    assert sorted(runner.get_output_details()) == ["hidden", "logits"]
    feeds = {}
    for (name, details), tensor in zip(
        sorted(runner.get_input_details().items()), subject.batch(2).values(), strict=True
    ):
        scale, zero_point = details["quantization"]
        assert details["dtype"] is np.int8
        feeds[name] = (tensor / scale).round().add(zero_point).clamp(-128, 127).numpy().astype(np.int8)
    expected, (scale, zero_point) = (
        outputs(model, subject.batch(2))[0],
        runner.get_output_details()["logits"]["quantization"],
    )
    actual = (runner(**feeds)["logits"].astype(np.float32) - zero_point) * scale
    assert abs(actual - expected.numpy()).max() <= 1.01 * scale


def test_an_fp32_model_is_compared_as_well(tmp_path: Path) -> None:
    subject = SUBJECTS["pooled"]
    file = lc.export_litert(subject.make().eval(), tmp_path / "model.tflite", subject.batch(2))
    assert file.steps is None
    assert file.difference is not None
    assert file.difference < 1e-5


def test_a_concatenation_of_several_scales_names_the_backend(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LiteRT computes with one scale for .*backend=lc\.LiteRT\(\)"):
        lc.export_litert(SUBJECTS["pooled"].quantized(), tmp_path / "model.tflite", SUBJECTS["pooled"].batch(2))


class Resized(nn.Module):
    """Enlarges features between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.last(nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))


def test_an_interpolation_has_one_scale(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, model = torch.randn(16, 3, 8, 8), Resized().eval()
    quantized = lc.calibrate(model, [images], backend=lc.LiteRT())
    file = lc.export_litert(quantized, tmp_path / "model.tflite", images[:2])
    assert max((file.steps or {}).values()) <= 1
    assert "RESIZE_BILINEAR" in operators(file.path)
    with pytest.raises(ValueError, match=r"LiteRT computes with one scale for .*'interpolate'.*, which have several"):
        lc.export_litert(lc.calibrate(model, [images]), tmp_path / "other.tflite", images[:2])


class Smaller(nn.Module):
    """Resizes what a layer in FP32 returns, so that the largest values are not among the result."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        return self.last(nn.functional.interpolate(x, size=(6, 6), mode="bilinear", align_corners=True))


class Projected(nn.Module):
    """Reads features as an image and as a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.image, self.sequence = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.first(x)
        return self.image(x), self.sequence(x.flatten(2).transpose(1, 2))


@pytest.mark.parametrize("kind", [Smaller, Projected])
def test_other_peoples_forms(kind: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 3, 8, 8)
    model = lc.calibrate(kind(), [images], backend=lc.LiteRT())
    file = lc.export_litert(model, tmp_path / "model.tflite", images[:2])
    assert max((file.steps or {}).values()) <= 1
    assert file.difference < 0.05


class Weighted(nn.Module):
    """Multiplies features by their weighted sum, which is expanded to their shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scores, self.keys, self.values = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        context = (self.keys(x) * self.scores(x).softmax(-1)).sum(-1, keepdim=True)
        values = self.values(x).relu()
        return self.head(values * context.expand_as(values))


@pytest.mark.parametrize("quantized", [False, True])
def test_expansions_before_arithmetic_are_left_to_it(quantized: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images, model = torch.randn(16, 3, 4, 9), Weighted().eval()
    if quantized:
        model = lc.calibrate(model, [images], backend=lc.LiteRT())
    file = lc.export_litert(model, tmp_path / "model.tflite", images[:2])
    assert max((file.steps or {"": 0}).values()) <= 1
    assert file.difference < (0.02 if quantized else 1e-5)
    assert "BROADCAST_TO" not in " ".join(operators(file.path))


class Solved(nn.Module):
    """An operator that LiteRT does not have."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x)


def test_what_litert_lacks_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Solved could not be exported to LiteRT"):
        lc.export_litert(Solved(), tmp_path / "model.tflite", torch.randn(2, 3, 3))
    model = lc.calibrate(nn.Sequential(nn.Linear(8, 4)), [torch.randn(4, 8)], activations=None)
    with pytest.raises(ValueError, match=r"'0' has quantized weights and an FP32 input, which this export to LiteRT"):
        lc.export_litert(model, tmp_path / "model.tflite", torch.randn(1, 8))
    assert not [*tmp_path.iterdir()]


def test_layers_without_an_int8_kernel_are_named(tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(16, 3, 4, 4)
    up = [nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1) for _ in range(2)]
    model = lc.calibrate(nn.Sequential(nn.Conv2d(3, 4, 1), *up), [images], backend=lc.LiteRT())
    with pytest.raises(
        ValueError, match=r"weights of '1', '2' are not stored .*targets=Targets\(exclude=\('1', '2'\)\)"
    ):
        lc.export_litert(model, tmp_path / "model.tflite", images[:2])
    targets = lc.Targets(exclude=("1", "2"))
    model = lc.calibrate(nn.Sequential(nn.Conv2d(3, 4, 1), *up), [images], targets=targets, backend=lc.LiteRT())
    assert max((lc.export_litert(model, tmp_path / "model.tflite", images[:2]).steps or {}).values()) <= 1


def test_other_weights_than_the_models_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SUBJECTS["linear"].quantized()
    lower_for = litert.lower_for

    def changed(*args: Any) -> Any:
        lowered = lower_for(*args)
        lowered.layers[1].weight.integers[0, 0] += 1
        return lowered

    monkeypatch.setattr(litert, "lower_for", changed)
    with pytest.raises(ValueError, match="The weights of '2' are not stored as INT8 in the file"):
        lc.export_litert(model, tmp_path / "model.tflite", SUBJECTS["linear"].batch(2))
