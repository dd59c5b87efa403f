"""Placement of quantizers in common network structures."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.quantization.call_patcher import CallSite
from lightning_compress.quantization.placement import Placement, QuantizationPoint
from lightning_compress.quantization.tracing import trace
from tests.quantization.nets import Attends, Classified, Dense, Gate, Keywords, Residual, Scores, Statements, conv


def placed(model: nn.Module, x: Tensor | None = None, exclude: tuple[str, ...] = ()) -> Placement:
    targets = lc.Targets(exclude=exclude).select(model)
    return Placement(trace(model, torch.randn(2, 4, 3, 3) if x is None else x), {t.layer: True for t in targets})


def names(model: nn.Module, x: Tensor | None = None, exclude: tuple[str, ...] = ()) -> set[str]:
    return {f"{place.module}.{place.name}".lstrip(".") for place in placed(model, x, exclude).activations()}


def left(placement: Placement) -> list[str]:
    return [f"{node.module}.{node.call.function}".lstrip(".") for node in placement.unquantized_ops()]


def test_residual() -> None:
    assert names(Residual()) == {
        "first.0.conv2d_input_0",  # the image, shared with the addition
        "relu.relu",
        "second.1.batch_norm",  # operand of the addition, behind the folded norm
        "add_input_1",
        "relu.relu_call_1",
    }
    assert left(placed(Residual())) == []


def test_squeeze_and_excite() -> None:
    assert names(Gate()) == {
        "body.0.conv2d_input_0", "body.1.batch_norm", "mean", "relu", "up.conv2d", "sigmoid", "mul",
    }  # fmt: skip


def test_silu_has_a_quantized_sigmoid() -> None:
    assert names(nn.Sequential(conv(), nn.SiLU(), nn.Conv2d(4, 4, 1))) == {
        "0.0.conv2d_input_0", "0.1.batch_norm", "1.silu_inner", "1.silu", "2.conv2d",
    }  # fmt: skip


@pytest.mark.parametrize("curve", [nn.Hardswish, nn.Sigmoid, nn.Hardsigmoid, nn.LeakyReLU])
def test_smooth_activations_have_quantized_inputs_and_outputs(curve: type[nn.Module]) -> None:
    function = {"Hardswish": "hardswish", "Sigmoid": "sigmoid", "Hardsigmoid": "hardsigmoid", "LeakyReLU": "leaky_relu"}
    assert names(nn.Sequential(conv(), curve())) == {
        "0.0.conv2d_input_0", "0.1.batch_norm", f"1.{function[curve.__name__]}",
    }  # fmt: skip


@pytest.mark.parametrize("clip", [nn.ReLU, nn.ReLU6, nn.Hardtanh])
def test_clipping_activations_have_a_quantized_output_only(clip: type[nn.Module]) -> None:
    found = names(nn.Sequential(conv(), clip()))
    assert len(found) == 2
    assert "0.1.batch_norm" not in found


def test_densenet() -> None:
    # The concatenation and its operands are quantized; the norm behind it is not folded and stays in FP32.
    found = placed(Dense())
    assert left(found) == ["norm.batch_norm"]
    assert {"stem.conv2d", "cat", "relu", "conv.conv2d"} <= names(Dense())
    assert "norm.batch_norm" not in names(Dense())


def test_pooling_and_flattening_keep_the_scale() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.MaxPool2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(4, 2))
    assert names(model) == {"0.conv2d_input_0", "1.relu", "5.linear"}


def test_attention_stays_in_fp32() -> None:
    found = placed(Attends(), torch.randn(2, 3, 4), exclude=("attention", "attention.out_proj"))
    assert {node.module for node in found.weights()} == {"before", "after"}
    assert any("attention" in name for name in left(found))


def test_a_learned_token_that_is_expanded_is_quantized_once() -> None:
    assert names(Classified(), torch.randn(2, 4, 8)) == {
        "cat_input_0", "cat_input_1", "cat", "qkv.linear", "scaled_dot_product_attention", "proj.linear",
    }  # fmt: skip


def test_tensors_passed_by_keyword() -> None:
    assert names(Keywords()) == {
        "first.linear_input_0", "relu", "gelu", "second.linear", "cat", "add", "add_input_1", "third.linear",
    }  # fmt: skip


def test_results_of_in_place_statements_are_quantized_by_their_readers() -> None:
    assert names(Statements()) == {
        "first.conv2d_input_0", "first.conv2d", "second.conv2d_input_0", "second.conv2d", "third.conv2d_input_0",
        "third.conv2d",
    }  # fmt: skip
    assert left(placed(Statements())) == ["add", "mul"]


@pytest.mark.parametrize(
    ("how", "floats"),
    [
        ("add", ["matmul", "mul", "div", "add", "softmax", "matmul"]),
        ("where", ["matmul", "div", "where", "add", "softmax", "matmul"]),
        ("bias", ["matmul", "mul", "div", "add", "softmax", "matmul"]),
        ("function", ["scaled_dot_product_attention"]),
    ],
)
def test_attention_scores_and_masks_stay_in_fp32_and_are_listed(how: str, floats: list[str]) -> None:
    model, x = Scores(how), torch.randn(2, 5, 8)
    found = placed(model, x)
    assert left(found) == floats
    last = "add_2" if how == "bias" else "add_1"  # the residual addition
    assert {name for name in names(model, x) if name.startswith(("add", "mul"))} == {last, f"{last}_input_1"}


def test_excluded_layers_stay_in_fp32_and_are_listed() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
    found = placed(model, exclude=("2",))
    assert left(found) == ["2.conv2d"]
    assert [node.module for node in found.weights()] == ["0", "4"]
    assert names(model, exclude=("2",)) == {"0.conv2d_input_0", "1.relu", "3.relu", "4.conv2d"}


def test_zero_dimensional_tensors_are_not_quantized() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)
            self.register_buffer("two", torch.tensor(2.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x * self.two) + 1.0

    assert names(Scaled()) == {"mul", "add"}


@pytest.mark.parametrize(
    "place",
    [
        QuantizationPoint("a.b", CallSite(""), "weight"),
        QuantizationPoint("", CallSite("conv2d", 1), "weight"),
        QuantizationPoint("a", CallSite("relu")),
        QuantizationPoint("a", CallSite("max_pool2d", 2, 1)),
        QuantizationPoint("a", CallSite("cat", 0, 3), "input_11"),
        QuantizationPoint("a", CallSite("silu", 1), "inner"),
        QuantizationPoint("a", CallSite("leaky_relu", 0, 2)),
    ],
)
def test_names_are_parsed(place: QuantizationPoint) -> None:
    assert QuantizationPoint.from_name(place.module, place.name) == place


def test_products_with_integers_are_computed_in_fp32() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x * torch.arange(x.shape[-1]))

    found = Placement(trace(Positions(), torch.randn(2, 4)), {"fc": True})
    assert left(found) == ["mul"]
    assert {f"{point.module}.{point.name}".lstrip(".") for point in found.activations()} == {"mul", "fc.linear"}
