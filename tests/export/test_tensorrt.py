"""Files in TensorRT's dialect of ONNX: where quantize and dequantize nodes stand, and the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.export.onnx.exporter import OnnxFile

MOVING = {"MaxPool", "Reshape", "Flatten", "Transpose", "Split", "Slice", "Gather", "Squeeze", "Unsqueeze"}


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class Block(nn.Module):
    """Residual addition with a projected shortcut, and one with the input itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.conv3, self.bn3 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        x = F.relu(y + self.down(x))
        x = F.relu(self.bn3(self.conv3(x)) + x)
        return self.fc(F.adaptive_avg_pool2d(F.max_pool2d(x, 2), 1).flatten(1))


class Neck(nn.Module):
    """Concatenations of YOLO's C2f and of a feature pyramid, one of which the other reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.deeper = conv(3, 8), conv(8, 8, stride=2)
        self.first, self.second = conv(4, 4), conv(4, 4)
        self.joined, self.head = conv(12, 8, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = list(self.deeper(x).chunk(2, 1))
        parts.append(parts[-1] + self.second(self.first(parts[-1])))
        y = self.joined(torch.cat(parts, 1))
        return self.head(torch.cat([F.interpolate(y, scale_factor=2.0, mode="nearest"), x], 1)).flatten(2)


NETS: dict[str, Callable[[], nn.Module]] = {"block": Block, "neck": Neck}


class Nodes:
    """Nodes of a file by the tensors that they read and return."""

    def __init__(self, file: OnnxFile) -> None:
        self.graph = onnx.load(file.path).graph
        self.constants = {each.name: onnx.numpy_helper.to_array(each) for each in self.graph.initializer}
        self.producers = {name: node for node in self.graph.node for name in node.output}

    def of(self, *kinds: str) -> list[Any]:
        return [node for node in self.graph.node if node.op_type in kinds]

    def before(self, name: str) -> Any:
        """The node that returns a tensor, in front of those that only move its values."""
        node = self.producers.get(name)
        while node is not None and node.op_type in MOVING:
            node = self.producers.get(node.input[0])
        return node

    def after(self, node: Any) -> Iterator[Any]:
        return (other for other in self.graph.node if set(node.output) & set(other.input))

    def scale(self, node: Any) -> float:
        return self.constants[node.input[1]].item()


def quantized(name: str, **kwargs: Any) -> nn.Module:
    torch.manual_seed(0)
    return lc.calibrate(NETS[name](), [images()], backend=lc.TensorRT(), **kwargs)


def images() -> Tensor:
    return torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, OnnxFile]:
    folder = tmp_path_factory.mktemp("tensorrt")
    return {
        name: lc.export_onnx(quantized(name), folder / f"{name}.onnx", images(), backend=lc.TensorRT()) for name in NETS
    }


@pytest.fixture(params=NETS)
def file(request: pytest.FixtureRequest, files: dict[str, OnnxFile]) -> OnnxFile:
    return files[request.param]


def test_the_file_runs_and_every_activation_is_within_1_lsb(file: OnnxFile) -> None:
    assert file.steps
    assert max(file.steps.values()) <= 1
    assert file.difference < 0.03
    assert file.integers is None  # those of ONNX Runtime say nothing


def test_activations_and_weights_are_int8_with_zero_point_0(file: OnnxFile) -> None:
    nodes = Nodes(file)
    for node in nodes.of("QuantizeLinear", "DequantizeLinear"):
        zero_point = nodes.constants[node.input[2]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()


def test_layers_read_dequantized_activations_and_weights_and_fp32_biases(file: OnnxFile) -> None:
    nodes = Nodes(file)
    layers = nodes.of("Conv", "Gemm", "MatMul")
    assert layers
    for node in layers:
        activation, weight = (nodes.before(name) for name in node.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert nodes.producers[activation.input[0]].op_type == "QuantizeLinear"
        assert nodes.constants[weight.input[0]].dtype == np.int8
        assert len(nodes.constants[weight.input[1]]) == len(nodes.constants[weight.input[0]])  # a scale per channel
        assert all(nodes.constants[name].dtype == np.float32 for name in node.input[2:])


def test_nothing_is_quantized_between_a_layer_and_what_is_fused_with_it(file: OnnxFile) -> None:
    nodes = Nodes(file)
    for layer in nodes.of("Conv", "Gemm"):
        readers = [node.op_type for node in nodes.after(layer)]
        # A convolution is quantized itself only as the shortcut of an addition.
        if "QuantizeLinear" in readers:
            (quantize,) = nodes.after(layer)
            (dequantize,) = nodes.after(quantize)
            assert [node.op_type for node in nodes.after(dequantize)] == ["Add"]


def test_a_residual_addition_reads_one_convolution_and_int8(files: dict[str, OnnxFile]) -> None:
    nodes = Nodes(files["block"])
    additions = nodes.of("Add")
    assert len(additions) == 2
    for node in additions:
        assert [nodes.producers[name].op_type for name in node.input] == ["Conv", "DequantizeLinear"]


def test_concatenations_have_one_scale(files: dict[str, OnnxFile]) -> None:
    nodes = Nodes(files["neck"])
    scales = []
    for quantize in nodes.of("QuantizeLinear"):
        node = nodes.producers.get(quantize.input[0])
        if node is not None and node.op_type == "Concat":
            inputs = [nodes.before(name) for name in node.input]
            assert {each.op_type for each in inputs} == {"DequantizeLinear"}
            assert {nodes.scale(each) for each in inputs} == {nodes.scale(quantize)}
            scales.append(nodes.scale(quantize))
    assert len(scales) == len(set(scales)) == 2


def test_what_is_fused_is_listed_as_fp32(files: dict[str, OnnxFile]) -> None:
    assert files["block"].unquantized_ops == ("adaptive_avg_pool2d",)
    silus = [f"{name}.2.silu" for name in ("stem", "deeper", "first", "second", "joined")]
    assert {*files["neck"].unquantized_ops} == {*silus, "add", "interpolate"}


def assert_shared(net: nn.Module) -> None:
    state = net.state_dict()
    groups = [("add", "cat", "deeper.2.silu"), ("interpolate", "cat_1", "stem.2.silu")]
    scales = []
    for group in groups:
        keys = [".".join((*name.split(".")[:-1], f"quant_{name.split('.')[-1]}_scale")) for name in group]
        assert len({state[key].item() for key in keys}) == 1
        scales.append(state[keys[0]])
    assert 0 < scales[0] != scales[1] > 0


class Classifier(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = Neck()

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_training_keeps_one_scale_and_ends_with_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, loader = Classifier(), DataLoader(TensorDataset(torch.randn(32, 3, 16, 16)), batch_size=8)

    def fit(model: Classifier, epochs: int, ckpt_path: Path | None = None) -> None:
        callback = lc.QuantizationAwareTraining(
            backend=lc.TensorRT(), targets=lc.Targets(module="net"), schedule=lc.QATSchedule(freeze_observers=0.9)
        )
        trainer = pl.Trainer(
            max_epochs=epochs, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False,
        )  # fmt: skip
        trainer.fit(model, loader, ckpt_path=ckpt_path)
        trainer.save_checkpoint(tmp_path / "last.ckpt")

    fit(model, 1)
    resumed = Classifier()
    fit(resumed, 2, tmp_path / "last.ckpt")
    assert_shared(resumed.net)
    assert resumed.net.quant_cat_scale.item() != model.net.quant_cat_scale.item()
    file = lc.export_onnx(lc.finalize(resumed, module="net"), tmp_path / "model.onnx", images(), backend=lc.TensorRT())
    assert file.steps
    assert max(file.steps.values()) <= 1


def test_a_model_for_another_runtime_is_an_error(tmp_path: Path) -> None:
    model = lc.calibrate(Block(), [images()])
    with pytest.raises(ValueError, match=r"has a zero point, and TensorRT takes only 0: .*backend=lc\.TensorRT\(\)"):
        lc.export_onnx(model, tmp_path / "model.onnx", images(), backend=lc.TensorRT())
    model = lc.calibrate(Neck(), [images()], activations=lc.Int(8, symmetric=True))
    with pytest.raises(ValueError, match=r"TensorRT computes with one scale for .*'cat'.*, which have several"):
        lc.export_onnx(model, tmp_path / "model.onnx", images(), backend=lc.TensorRT())
    assert not [*tmp_path.iterdir()]


def test_grids_that_it_does_not_take_are_errors() -> None:
    with pytest.raises(ValueError, match=r"Int\(symmetric=False\) has zero points, and TensorRT takes only 0"):
        lc.QuantizationAwareTraining(activations=lc.Int(8, symmetric=False), backend=lc.TensorRT())
    with pytest.raises(ValueError, match=r"TensorRT computes with one scale for .*learned"):
        quantized("neck", activations=lc.Int(8, observer=lc.Learned()))
    with pytest.raises(ValueError, match=r"TensorRT computes with one scale for .*differently"):
        quantized("neck", activations={"deeper": lc.Int(4), "*": lc.Int(8)})
    assert quantized("block", activations=lc.Int(8, observer=lc.Learned())) is not None


@pytest.mark.parametrize("observer", [lc.MinMax(), lc.MovingAverage(), lc.MSE(), lc.Percentile()])
def test_every_observer_finds_one_scale(observer: Any) -> None:
    assert_shared(quantized("neck", activations=lc.Int(8, observer=observer)))
