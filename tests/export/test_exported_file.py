"""Promises that every export target keeps; a new target is one more line of ``TARGETS``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.export.executorch import ExecutorchFile
from lightning_compress.export.exported_file import ExportedFile
from lightning_compress.export.litert import LitertFile
from lightning_compress.export.onnx.exporter import OnnxFile
from lightning_compress.export.openvino import OpenvinoFile
from lightning_compress.export.program import ProgramFile
from tests.cases import assert_same
from tests.export.nets import SUBJECTS

TARGETS = [
    pytest.param(lc.export_onnx, OnnxFile, "model.onnx", id="onnx"),
    pytest.param(lc.export_program, ProgramFile, "model.pt2", id="program"),
    pytest.param(
        lc.export_executorch,
        ExecutorchFile,
        "model.pte",
        id="executorch",
        marks=pytest.mark.skipif(find_spec("executorch") is None, reason="needs the extra executorch"),
    ),
    pytest.param(
        lc.export_openvino,
        OpenvinoFile,
        "model.onnx",
        id="openvino",
        marks=pytest.mark.skipif(find_spec("openvino") is None, reason="needs the extra openvino"),
    ),
    pytest.param(
        lc.export_litert,
        LitertFile,
        "model.tflite",
        id="litert",
        marks=pytest.mark.skipif(find_spec("litert_torch") is None, reason="needs the extra litert"),
    ),
]
every_target = pytest.mark.parametrize(("export", "kind", "name"), TARGETS)
Export = Callable[[nn.Module, Path, Any], ExportedFile]


class Gelu(nn.Module):
    """A quantized layer, and an activation function that stays in FP32."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.nn.functional.gelu(self.fc(x))


@pytest.mark.filterwarnings("ignore:.*has no VNNI:UserWarning")
@every_target
def test_a_quantized_model_is_written_measured_and_left_as_it_was(
    export: Export, kind: type[ExportedFile], name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    batch = torch.randn(8, 6)
    model = lc.calibrate(Gelu(), [batch])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    file = export(model, tmp_path / name, batch)
    assert_same({**model.state_dict()}, before)
    assert isinstance(file, kind)
    assert [*tmp_path.iterdir()] == [file.path] == [tmp_path / name]
    assert file.num_bytes == file.path.stat().st_size > 0
    lower, median, upper = file.latency_quartiles
    assert 0 < lower <= median == file.latency <= upper
    assert file.unquantized_ops == file.left_in_float == ("gelu",)  # the second is the old name
    assert file.steps is not None
    assert set(file.steps) == {"fc.linear_input_0", "fc.linear"}
    assert max(file.steps.values()) <= 1


@every_target
def test_an_fp32_model_has_no_steps(export: Export, kind: type[ExportedFile], name: str, tmp_path: Path) -> None:
    file = export(SUBJECTS["linear"].make(), tmp_path / name, SUBJECTS["linear"].batch(2))
    assert isinstance(file, kind)
    assert (file.steps, file.unquantized_ops) == (None, ())
    assert file.difference < 1e-5


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool(x.sum() > 0) else x


@every_target
def test_a_failure_is_one_sentence_and_replaces_nothing(
    export: Export, kind: type[ExportedFile], name: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text("old")
    with pytest.raises(ValueError, match=r"^Branches could not be exported to .*, as it branches .*use torch\.where"):
        export(Branches(), tmp_path / name, torch.ones(2, 2))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, "old")]
