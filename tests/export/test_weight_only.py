"""ONNX files with 4-bit and 8-bit weights and FP32 activations."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.export.capture import run_copy
from lightning_compress.export.onnx.operators import OnnxOperators
from lightning_compress.quantization.lowering import lower


class Mlp(nn.Module):
    """Linear layers of tokens, with and without a bias, one called twice, and one of a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(64, 96), nn.Linear(96, 64, bias=False), nn.Linear(64, 10)
        self.norm = nn.BatchNorm1d(10)
        nn.init.uniform_(self.norm.weight, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = x + self.down(F.gelu(self.up(x)))
        return self.norm(self.head(x.mean(1)))


def tokens() -> Tensor:
    return torch.randn(4, 7, 64, generator=torch.Generator().manual_seed(0))


def quantized(weights: lc.Int) -> nn.Module:
    torch.manual_seed(0)
    return lc.calibrate(Mlp(), [tokens()], weights=weights, activations=None)


def kinds(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", [32, 48, "channel"])
def test_matrix_products_read_blocks_of_integers(bits: int, granularity: Any, tmp_path: Path) -> None:
    if granularity == 48:  # divides only one of the widths, and is no power of two
        weights: Any = {"down": lc.Int(bits, granularity=48), "*": lc.Int(bits)}
    else:
        weights = lc.Int(bits, granularity=granularity)
    file = lc.export_onnx(quantized(weights), tmp_path / "model.onnx", tokens())
    assert file.difference < 1e-6
    assert file.steps == {}
    assert kinds(file.path)["MatMulNBits"] == 5
    graph = onnx.load(file.path).graph
    constants = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            given = {each.name: each.i for each in node.attribute}
            assert given["bits"] == bits
            assert constants[node.input[1]].dtype == "uint8"
            assert constants[node.input[1]].size == given["N"] * given["K"] * bits // 8


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("granularity", [32, 8, "channel"])
def test_the_standard_form_has_the_same_weights(bits: int, granularity: Any, tmp_path: Path) -> None:
    model = quantized(lc.Int(bits, granularity=granularity))
    file = lc.export_onnx(model, tmp_path / "model.onnx", tokens(), contrib=False)
    written = onnx.load(file.path)
    assert {each.domain for each in written.opset_import} == {""}
    assert kinds(file.path)["DequantizeLinear"] == 5
    # ONNX's own evaluation: ONNX Runtime rounds the activations of 4-bit products to 8 bits by default.
    actual = onnx.reference.ReferenceEvaluator(written).run(None, {written.graph.input[0].name: tokens().numpy()})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(actual), model(tokens()), rtol=1e-5, atol=1e-5)
    integers = [each for each in written.graph.initializer if each.name.endswith("integers")]
    assert {each.data_type for each in integers} == {onnx.TensorProto.INT4 if bits == 4 else onnx.TensorProto.INT8}


def test_negative_factors_of_a_norm_are_folded_into_groups() -> None:
    model = quantized(lc.Int(4, granularity=32))
    lowered = lower(run_copy(model, ((tokens(),), {})), OnnxOperators())
    with torch.no_grad():
        torch.testing.assert_close(lowered.model(tokens()), model(tokens()), rtol=1e-5, atol=1e-5)
    head = lowered.layers[-1]
    assert (head.name, head.weight.scale.shape, head.weight.bits) == ("head", (10, 2), 4)
    assert (head.weight.scale > 0).all()


def test_a_linear_network_takes_at_most_016_of_its_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(512, 512), nn.GELU()) for _ in range(4)))
    x = torch.randn(2, 512)
    dense = lc.export_onnx(model, tmp_path / "float.onnx", x)
    quantized = lc.calibrate(model, [x], weights=lc.Int(4, granularity=32), activations=None)
    file = lc.export_onnx(quantized, tmp_path / "model.onnx", x)
    assert file.num_bytes <= 0.16 * dense.num_bytes


def test_groups_need_fp32_activations(tmp_path: Path) -> None:
    model = lc.calibrate(Mlp(), [tokens()], weights=lc.Int(4, granularity=32))
    with pytest.raises(ValueError, match=r"'up' have a scale for each group of 32 inputs.*or activations=None"):
        lc.export_onnx(model, tmp_path / "model.onnx", tokens())


def test_4_bits_of_the_standard_form_need_opset_21(tmp_path: Path) -> None:
    model = quantized(lc.Int(4, granularity=32))
    with pytest.raises(
        ValueError, match=r"'up' have 4 bits or groups of inputs, for which opset=20 has no operator: pass opset=21"
    ):
        lc.export_onnx(model, tmp_path / "model.onnx", tokens(), contrib=False, opset=20)
    assert lc.export_onnx(model, tmp_path / "model.onnx", tokens(), opset=20).difference < 1e-6
