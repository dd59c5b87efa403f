"""ONNX files: integers, the same numbers, any batch; and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import lightning_compress as lc
from lightning_compress.export.kernels import check_integers
from lightning_compress.export.onnx import OnnxDialect, OnnxFile
from lightning_compress.export.pieces import check_layers
from lightning_compress.quantization.lowering import lower
from lightning_compress.quantization.recording import record
from tests.cases import assert_same
from tests.export.nets import SUBJECTS, Subject, outputs

pytestmark = pytest.mark.filterwarnings("ignore:.*has no VNNI:UserWarning")


@pytest.fixture(scope="module", params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


@pytest.fixture(scope="module")
def model(subject: Subject) -> nn.Module:
    return subject.quantized()


@pytest.fixture(scope="module")
def file(subject: Subject, model: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> OnnxFile:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    file = lc.export_onnx(model, tmp_path_factory.mktemp("onnx") / "model.onnx", subject.batch(1))
    assert_same({**model.state_dict()}, before)
    return file


@pytest.fixture(scope="module")
def linear(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, OnnxFile]:
    """A small model and its file, for the tests that tamper with it."""
    model = SUBJECTS["linear"].quantized()
    return model, lc.export_onnx(model, tmp_path_factory.mktemp("linear") / "model.onnx", SUBJECTS["linear"].batch(2))


def run(path: Path, batch: Any) -> list[Tensor]:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")  # what CPUs with VNNI compute
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    feeds = dict(zip(names, [t.numpy() for t in tree_leaves(batch)], strict=True))
    return [torch.from_numpy(array) for array in session.run(None, feeds)]


def test_layers_compute_with_integers_and_are_right(subject: Subject, file: OnnxFile) -> None:
    assert file.integers is not None
    assert file.parity is not None
    assert (file.integers.integer.get("conv", 0), file.integers.integer.get("linear", 0)) == subject.num_integer
    assert max(file.parity.steps.values()) <= 1
    assert file.num_bytes == file.path.stat().st_size
    assert file.latency > 0


def test_operators_are_counted_by_what_they_compute_on(subject: Subject, file: OnnxFile) -> None:
    counted = file.integers
    assert counted is not None
    assert {
        kind: (counted.integer.get(kind, 0), counted.float.get(kind, 0)) for kind in subject.others
    } == subject.others
    assert not [other for other in counted.float if other.endswith("Pool")]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_a_batch_of_any_size_gives_what_the_model_gives(
    subject: Subject, model: nn.Module, file: OnnxFile, size: int
) -> None:
    batch = subject.batch(size)
    for ours, theirs in zip(outputs(model, batch), run(file.path, batch), strict=True):
        assert ours.shape == theirs.shape
        # On average a step: where two machines round a half apart, a few entries are off by more behind further layers.
        assert (ours - theirs).abs().mean() <= ours.abs().max() / subject.num_levels + 1e-6


def test_every_zero_is_an_integer_zero(model: nn.Module, file: OnnxFile) -> None:
    constants = [onnx.numpy_helper.to_array(c) for c in onnx.load(file.path).graph.initializer]
    integers = [c for c in constants if c.dtype == np.int8 and c.ndim > 1]
    weights = [p.detach().numpy() for name, p in model.named_parameters() if name.endswith("weight") and p.ndim > 1]
    assert len(integers) == len(weights)
    for weight in weights:
        assert any(
            c.shape == w.shape and (c[w == 0] == 0).all() and (np.sign(c) * np.sign(w) != 0).any() == (w != 0).any()
            for c in integers
            for w in (weight, weight.T)
        )


def test_inputs_and_outputs_have_the_names_of_dicts(subject: Subject, file: OnnxFile) -> None:
    graph = onnx.load(file.path).graph
    names = [value.name for value in graph.input], [value.name for value in graph.output]
    if subject is SUBJECTS["named"]:
        assert names == (["a", "b"], ["logits", "hidden"])
    else:
        assert [len(each) for each in names] == [1, 1]


def test_weights_alone(tmp_path: Path) -> None:
    subject = SUBJECTS["residual"]
    torch.manual_seed(0)
    model = lc.calibrate(subject.make(), [subject.batch(4)], activations=None)
    file = lc.export_onnx(model, tmp_path / "model.onnx", subject.batch(2))
    assert file.difference < 1e-4
    assert onnx.TensorProto.INT8 in {c.data_type for c in onnx.load(file.path).graph.initializer}


def test_activations_are_unsigned(linear: tuple[nn.Module, OnnxFile]) -> None:
    graph = onnx.load(linear[1].path).graph
    kinds = {constant.name: constant.data_type for constant in graph.initializer}
    zero_points = [kinds[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert zero_points == [onnx.TensorProto.UINT8] * 3


def test_signed_activations_and_seven_bits(tmp_path: Path) -> None:
    subject = SUBJECTS["linear"]
    file = lc.export_onnx(
        subject.quantized(), tmp_path / "model.onnx", subject.batch(2), unsigned=False, reduce_range=True
    )
    constants = [onnx.numpy_helper.to_array(c) for c in onnx.load(file.path).graph.initializer]
    assert not [c for c in constants if c.dtype == np.uint8]
    assert 60 < max(np.abs(c.astype(int)).max() for c in constants if c.dtype == np.int8 and c.ndim > 1) <= 63
    assert file.integers is not None
    assert file.integers.integer["linear"] == 2


def test_a_float_model_is_written_with_floats(tmp_path: Path) -> None:
    subject = SUBJECTS["linear"]
    file = lc.export_onnx(lc.float_copy(subject.quantized()), tmp_path / "model.onnx", subject.batch(2))
    assert (file.integers, file.parity) == (None, None)
    assert file.difference < 1e-5


def test_a_static_batch(tmp_path: Path) -> None:
    subject = SUBJECTS["linear"]
    file = lc.export_onnx(subject.quantized(), tmp_path / "model.onnx", subject.batch(1), dynamic_batch=False)
    assert onnx.load(file.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 1


def test_tampered_weights_are_noticed(linear: tuple[nn.Module, OnnxFile], tmp_path: Path) -> None:
    model, file = linear
    inputs = ((SUBJECTS["linear"].batch(2),), {})
    lowered = lower(model, inputs, OnnxDialect(21, unsigned=True))
    _, simulated = record(model, inputs)
    check_layers(file.path, lowered, simulated, inputs, unsigned=True)
    tampered = onnx.load(file.path)
    constant = next(c for c in tampered.graph.initializer if c.data_type == onnx.TensorProto.INT8 and len(c.dims) > 1)
    array = onnx.numpy_helper.to_array(constant).copy()
    array[0] = -array[0]
    constant.CopyFrom(onnx.numpy_helper.from_array(array, constant.name))
    onnx.save(tampered, tmp_path / "tampered.onnx")
    with pytest.raises(ValueError, match=r"differs from the model at 1 of 3 places, at '1\.relu' by \d+ steps"):
        check_layers(tmp_path / "tampered.onnx", lowered, simulated, inputs, unsigned=True)


@pytest.mark.parametrize(("name", "layers"), [("linear", "2 of 2 linear"), ("dense", "3 of 3 conv")])
def test_a_layer_that_stayed_float_is_noticed(name: str, layers: str, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    model, batch = subject.quantized(), subject.batch(2)
    lowered = lower(model, batch, OnnxDialect(21, unsigned=True))
    broken = lc.export_onnx(lc.float_copy(model), tmp_path / "float.onnx", batch)
    with pytest.raises(ValueError, match=f"computes {layers} layers with floats"):
        check_integers(broken.path, lowered)


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lightning_compress.export.requirements.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnxscript is missing: pip install 'lightning-compress\[export\]'"):
        lc.export_onnx(nn.Linear(2, 2), tmp_path / "model.onnx", torch.ones(2, 2))


def test_what_cannot_be_traced_is_one_sentence(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x.sum() > 0) else x

    (tmp_path / "model.onnx").write_text("old")
    with pytest.raises(ValueError, match="Branches could not be exported to ONNX"):
        lc.export_onnx(Branches(), tmp_path / "model.onnx", torch.ones(2, 2))
    assert (tmp_path / "model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]
