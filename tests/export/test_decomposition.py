"""Files of graphs that were not decomposed compute as those of graphs that were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.export.onnx import decomposition, translation
from lightning_compress.export.onnx.runtime import run, session

INPUTS = torch.linspace(-2, 2, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


class InPlace(nn.Module):
    """In-place operators, the argument of which is read again, or is a view of a tensor that is."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.conv(x))


def read_again(x: Tensor) -> Tensor:
    F.relu(x, inplace=True)
    return x + 1


def read_before(x: Tensor) -> Tensor:
    y = x * 2
    return F.relu(x, inplace=True) + y


def view(x: Tensor) -> Tensor:
    y = x.view(2, -1)
    F.relu(y, inplace=True)
    return x - y.view(x.shape)


def view_of_changed(x: Tensor) -> Tensor:
    y = x.view(2, -1)
    F.relu(x, inplace=True)
    return y + 1


def dropped(x: Tensor) -> Tensor:
    y = F.dropout(x, training=False)
    return F.relu(y, inplace=True) + x


def added(x: Tensor) -> Tensor:
    y = F.relu(x)
    y += x
    return y * 2


def pooled(x: Tensor) -> Tensor:
    return F.adaptive_avg_pool2d(F.relu(x, inplace=True), 1).flatten(1)


FUNCTIONS = (read_again, read_before, view, view_of_changed, dropped, added, pooled)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_in_place_operators_compute_as_in_the_model(function: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    model = InPlace(function).eval()
    lc.export_onnx(model, tmp_path / "model.onnx", INPUTS, dynamic_batch=False)
    (output,) = run(session(tmp_path / "model.onnx"), ((INPUTS,), {}))
    torch.testing.assert_close(output, model(INPUTS))


@pytest.mark.parametrize("is_quantized", [False, True])
def test_files_are_the_same_without_decomposition(
    is_quantized: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4, 2)).eval()
    model = lc.calibrate(model, [INPUTS]) if is_quantized else model
    decomposed: list[bool] = []
    changes = decomposition._changes
    monkeypatch.setattr(decomposition, "_changes", lambda *args: decomposed.append(changes(*args)) or decomposed[-1])
    outputs, operators = [], []
    for skip in (translation.skip_needless_decomposition, lambda program: None):
        monkeypatch.setattr(translation, "skip_needless_decomposition", skip)
        lc.export_onnx(model, tmp_path / "model.onnx", INPUTS)
        outputs += run(session(tmp_path / "model.onnx"), ((INPUTS,), {}))
        operators.append(Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node))
    assert decomposed == [not is_quantized]  # the batch norm of an FP32 model is decomposed
    assert torch.equal(*outputs)
    # A decomposed flattening computes the shape of its output.
    assert operators[0] == operators[1] - Counter(("Reshape", "Concat", "Shape", "Squeeze"))
