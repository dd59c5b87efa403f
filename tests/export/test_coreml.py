"""Core ML packages, read back as the files that were written; they run on a Mac only."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.export import coreml
from tests.export.nets import SUBJECTS

coremltools = pytest.importorskip("coremltools", reason="needs the extra coreml")


class Operations:
    """Operations of a package, from its specification and its blob of weights."""

    def __init__(self, path: Path) -> None:
        from coremltools.converters.mil.frontend.milproto.load import load

        model = coremltools.models.MLModel(str(path), skip_model_load=True)
        spec = model.get_spec()
        program = load(spec, spec.specificationVersion, model.weights_dir)
        self.all = list(program.functions["main"].operations)
        self.inputs = [each.name for each in spec.description.input]
        self.outputs = [each.name for each in spec.description.output]

    def of(self, kind: str) -> list[Any]:
        return [operation for operation in self.all if operation.op_type == kind]

    def weights(self, kind: str) -> list[np.ndarray]:
        """Values that layers compute with."""
        return [operation.materialized_val_inference() for operation in self.of(kind)]


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


@pytest.mark.parametrize(("bits", "kind"), [(8, "int8"), (4, "int4"), (3, "int4")])
def test_weights_are_integers_and_those_of_the_model(bits: int, kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    images = torch.randn(4, 3, 8, 8)
    model = lc.calibrate(network, [images], weights=lc.Int(bits), activations=None)
    file = lc.export_coreml(model, tmp_path / "model.mlpackage", images, half=False)
    assert dict(file.compressed) == {"0": kind, "3": kind}
    assert (file.latency, file.steps, file.difference) == (None, None, None)
    operations = Operations(file.path)
    rounded = layers(lc.finalize(model))
    stored = operations.weights("constexpr_blockwise_shift_scale")
    for layer, operation, value in zip(rounded, operations.of("constexpr_blockwise_shift_scale"), stored, strict=True):
        assert np.array_equal(value, layer.weight.detach().numpy())
        data, scale = operation.data.val, operation.scale.val
        assert np.array_equal(data * scale, value)
        assert data.min() >= -(2 ** (bits - 1))
        assert coremltools.converters.mil.mil.types.builtin_to_string(operation.data.dtype) == kind


def test_quantized_activations_are_integers(tmp_path: Path) -> None:
    model = SUBJECTS["residual"].quantized()
    file = lc.export_coreml(model, tmp_path / "model.mlpackage", SUBJECTS["residual"].batch(2), half=False)
    operations = Operations(file.path)
    assert len(operations.of("constexpr_blockwise_shift_scale")) == len(file.compressed) == len(layers(model))
    assert not operations.of("batch_norm")  # folded
    for layer in (*operations.of("conv"), *operations.of("linear")):
        assert layer.x.op.op_type in ("dequantize", "reduce_mean", "reshape", "squeeze")
        assert layer.weight.op.op_type == "constexpr_blockwise_shift_scale"
    assert operations.of("quantize")


def test_groups_of_input_features_have_their_own_scales(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8))
    model = lc.calibrate(network, [torch.randn(4, 64)], weights=lc.Int(4, granularity=32), activations=None)
    file = lc.export_coreml(model, tmp_path / "model.mlpackage", torch.randn(1, 64), half=False)
    operations = Operations(file.path)
    assert [each.scale.shape for each in operations.of("constexpr_blockwise_shift_scale")] == [(32, 2), (8, 1)]
    for layer, value in zip(
        layers(lc.finalize(model)), operations.weights("constexpr_blockwise_shift_scale"), strict=True
    ):
        assert np.array_equal(value, layer.weight.detach().numpy())


class Clustered(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 36, 10)
        )

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(("granularity", "palettes"), [("tensor", (1, 1)), (4, (4, 1))])
@pytest.mark.parametrize("half", [False, True])
def test_clusters_are_palettes(granularity: Any, palettes: tuple[int, int], half: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, loader = Clustered(), DataLoader(TensorDataset(torch.randn(16, 3, 8, 8)), batch_size=4)
    clusters = {"net.0": 8, "net.4": 16} if granularity == "tensor" else {"net.0": 4}
    clustering = lc.WeightClustering(
        clusters, granularity=granularity, schedule=lc.Schedule(end=0.5), targets=lc.Targets(module="net")
    )
    pl.Trainer(
        max_epochs=2, callbacks=[clustering], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(model, loader)  # fmt: skip
    network = lc.finalize(model, module="net")
    path = tmp_path / "model.mlpackage"
    file = lc.export_coreml(network, path, torch.randn(1, 3, 8, 8), half=half)
    expected = {"0.weight": "3-bit palette", "4.weight": "4-bit palette"}
    assert dict(file.compressed) == (
        expected if granularity == "tensor" else {"0.weight": "2-bit palette (4 palettes)"}
    )
    operations = Operations(path)
    dtype = np.float16 if half else np.float32
    stored = operations.weights("constexpr_lut_to_dense")
    assert [len(each.lut.val) for each in operations.of("constexpr_lut_to_dense")] == [*palettes][: len(stored)]
    assert stored
    for value in stored:
        (layer,) = [layer for layer in layers(network) if layer.weight.shape == value.shape]
        assert value.dtype == dtype
        assert np.array_equal(value, layer.weight.detach().numpy().astype(dtype))
    dense = sum(layer.weight.numel() for layer in layers(network))
    assert sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) == file.num_bytes
    if granularity == "tensor":
        weights = (path / "Data/com.apple.CoreML/weights/weight.bin").stat().st_size
        assert weights < dense  # a byte each


def test_an_fp32_model_keeps_its_weights_and_names(tmp_path: Path) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 64)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            hidden = self.fc(x)
            return {"logits": hidden.relu(), "hidden": hidden}

    file = lc.export_coreml(Heads(), tmp_path / "model.mlpackage", {"x": torch.randn(1, 6)}, half=False)
    operations = Operations(file.path)
    assert (operations.inputs, operations.outputs) == (["x"], ["logits", "hidden"])
    assert not file.compressed
    # Written over an older package as a whole.
    again = lc.export_coreml(Heads(), file.path, {"x": torch.randn(1, 6)})
    assert again.num_bytes < file.num_bytes
    assert [each.name for each in tmp_path.iterdir()] == ["model.mlpackage"]


class Solved(nn.Module):
    """An operator that Core ML does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.erfinv(self.fc(x))


def test_what_core_ml_lacks_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"Solved could not be exported to Core ML, which has no operator for .*erfinv"
    ):
        lc.export_coreml(Solved(), tmp_path / "model.mlpackage", torch.randn(2, 4))
    with pytest.raises(ValueError, match=r"must end in \.mlpackage"):
        lc.export_coreml(nn.Linear(4, 4), tmp_path / "model.mlmodel", torch.randn(2, 4))
    assert not [*tmp_path.iterdir()]


def test_scales_that_fp16_does_not_have_are_named(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Linear(8, 4))
    with torch.no_grad():
        network[0].weight *= 1e-6
    model = lc.calibrate(network, [torch.randn(4, 8)], activations=None)
    with pytest.raises(ValueError, match=r"weights of '0' have scales down to .*, which FP16 does not have: use half"):
        lc.export_coreml(model, tmp_path / "model.mlpackage", torch.randn(1, 8))
    assert lc.export_coreml(model, tmp_path / "model.mlpackage", torch.randn(1, 8), half=False).compressed


class Prompted(nn.Module):
    """Puts constants before tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("prompt", torch.randn(2, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([self.prompt, x], 1))


def test_constants_in_lists(tmp_path: Path) -> None:
    tokens = torch.randn(2, 3, 8)
    for model, compressed in ((Prompted(), {}), (lc.calibrate(Prompted(), [tokens]), {"fc": "int8"})):
        file = lc.export_coreml(model.eval(), tmp_path / "model.mlpackage", tokens, dynamic_batch=False)
        assert file.compressed == compressed


def test_equal_weights_of_two_layers_are_stored_once(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 4, 3, padding=1)
    images = torch.randn(2, 4, 8, 8)
    model = lc.calibrate(nn.Sequential(layer, nn.ReLU(), copy.deepcopy(layer)), [images])
    assert lc.export_coreml(model, tmp_path / "model.mlpackage", images).compressed == {"0": "int8", "2": "int8"}


def test_other_weights_than_the_models_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = coreml._stored_weights

    def changed(path: Path) -> Any:
        stored = original(path)
        for arguments in stored.values():
            arguments["data"].flat[3] += 1
        return stored

    monkeypatch.setattr(coreml, "_stored_weights", changed)
    model = lc.calibrate(nn.Sequential(nn.Linear(8, 4)), [torch.randn(4, 8)], activations=None)
    with pytest.raises(ValueError, match="The weights of '0' in the file are not the model's"):
        lc.export_coreml(model, tmp_path / "model.mlpackage", torch.randn(1, 8))
    assert not [*tmp_path.iterdir()]
