"""ONNX files: integers, the same numbers, any batch; and what is refused."""

from __future__ import annotations

import warnings
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
from lightning_compress.arguments import as_arguments
from lightning_compress.export.capture import run_copy
from lightning_compress.export.onnx import parity
from lightning_compress.export.onnx.exporter import OnnxFile
from lightning_compress.export.onnx.kernels import check_integer_kernels, optimized_graph
from lightning_compress.export.onnx.operators import OnnxOperators
from lightning_compress.export.onnx.parity import SplitFile, check_parity
from lightning_compress.export.onnx.runtime import session
from lightning_compress.export.output_comparison import relative_difference, tensor_leaves
from lightning_compress.quantization.accumulator_range import limit_pair_sums_
from lightning_compress.quantization.lowering import lower
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
    runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in runtime.get_inputs()]
    feeds = dict(zip(names, [t.numpy() for t in tree_leaves(batch)], strict=True))
    return [torch.from_numpy(array) for array in runtime.run(None, feeds)]


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
    simulation = run_copy(model, as_arguments(batch))
    limit_pair_sums_(simulation)
    expected = tensor_leaves(simulation.again().output)
    for ours, theirs in zip(expected, run(file.path, batch), strict=True):
        assert ours.shape == theirs.shape
        # 1 LSB on average: where two machines round a tie differently, a few entries are off by more after further
        # layers.
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


def test_signed_activations(tmp_path: Path) -> None:
    subject = SUBJECTS["linear"]
    file = lc.export_onnx(subject.quantized(), tmp_path / "model.onnx", subject.batch(2), unsigned=False)
    constants = [onnx.numpy_helper.to_array(c) for c in onnx.load(file.path).graph.initializer]
    assert not [c for c in constants if c.dtype == np.uint8]
    assert 60 < max(map(largest_pair, constants)) <= 128
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
    simulation = run_copy(model, inputs)
    limit_pair_sums_(simulation)
    simulation = simulation.again()
    lowered = lower(simulation, OnnxOperators(21, unsigned=True))
    check_parity(SplitFile(file.path, lowered, simulation))
    tampered = onnx.load(file.path)
    constant = next(c for c in tampered.graph.initializer if c.data_type == onnx.TensorProto.INT8 and len(c.dims) > 1)
    array = onnx.numpy_helper.to_array(constant).copy()
    array[0] = -array[0]
    constant.CopyFrom(onnx.numpy_helper.from_array(array, constant.name))
    onnx.save(tampered, tmp_path / "tampered.onnx")
    with pytest.raises(
        ValueError,
        match=r"differs from the model in 1 of 3 activations, most in '1\.relu' by \d+ LSB: exclude that layer",
    ):
        check_parity(SplitFile(tmp_path / "tampered.onnx", lowered, simulation))


@pytest.mark.parametrize(("name", "layers"), [("linear", "2 of 2 linear"), ("dense", "3 of 3 conv")])
def test_a_layer_that_stayed_float_is_noticed(name: str, layers: str, tmp_path: Path) -> None:
    subject = SUBJECTS[name]
    model, batch = subject.quantized(), subject.batch(2)
    lowered = lower(run_copy(model, ((batch,), {})), OnnxOperators(21, unsigned=True))
    broken = lc.export_onnx(lc.float_copy(model), tmp_path / "float.onnx", batch)
    names = ", ".join(repr(layer.name) for layer in lowered.layers)
    words = rf"computes {layers} layers in FP32 .*: {names} \(.*exclude=\({lowered.layers[0].name!r},\)\)\.$"
    with pytest.raises(ValueError, match=words):
        check_integer_kernels(optimized_graph(broken.path), lowered)


def test_transposed_convolutions_are_listed_among_floats(tmp_path: Path) -> None:
    subject = SUBJECTS["transposed"]
    with pytest.warns(
        UserWarning, match=r"no INT8 kernels for '0\.conv_transpose2d', .*'8\.conv_transpose2d': their weights"
    ):
        file = lc.export_onnx(subject.quantized(), tmp_path / "model.onnx", subject.batch(1))
    # The channels of groups share scales, so that norms behind them are not folded.
    assert file.unquantized_ops == (
        *(f"{k}.batch_norm" for k in (4, 7)),
        *(f"{k}.conv_transpose2d" for k in (0, 3, 6, 8)),
    )


def test_what_onnx_runtime_has_no_integers_for_is_listed(subject: Subject, file: OnnxFile) -> None:
    pools = ("adaptive_avg_pool2d", "adaptive_avg_pool2d")
    if subject in (SUBJECTS["residual"], SUBJECTS["linear"]):
        assert file.unquantized_ops == (("act.hardswish", *pools) if subject is SUBJECTS["residual"] else ())


class Weighted(nn.Module):
    """Adds twice a branch, which ONNX has no one operator for."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = (nn.Conv2d(3, 3, 1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.add(self.left(x), self.right(x), alpha=2))


def test_a_sum_with_a_factor_is_computed_in_fp32(tmp_path: Path) -> None:
    batch = torch.randn(2, 3, 4, 4)
    file = lc.export_onnx(lc.calibrate(Weighted(), [batch]), tmp_path / "model.onnx", batch)
    assert file.unquantized_ops == ("scaled_add",)
    assert file.integers is not None
    assert file.integers.integer == {"conv": 3}


def test_an_addition_in_fp32_is_noticed(tmp_path: Path) -> None:
    model, batch = SUBJECTS["residual"].quantized(), SUBJECTS["residual"].batch(2)
    lowered = lower(run_copy(model, ((batch,), {})), OnnxOperators(21, unsigned=True))
    lowered.layers.clear()
    broken = lc.export_onnx(lc.float_copy(model), tmp_path / "float.onnx", batch)
    with pytest.raises(ValueError, match=r"computes 1 of 1 additions in FP32 .* with activations=\{'': None, "):
        check_integer_kernels(optimized_graph(broken.path), lowered)


@pytest.mark.parametrize("shape", [(2, 6), (2, 5, 6)])
def test_a_linear_layer_that_makes_floats_computes_with_integers(shape: tuple[int, ...], tmp_path: Path) -> None:
    model, batch = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(shape)
    quantized = lc.calibrate(model, [batch], activations={"2": None, "*": lc.Int(8)})
    file = lc.export_onnx(quantized, tmp_path / "model.onnx", batch)
    assert file.integers is not None
    assert (file.integers.integer["linear"], file.unquantized_ops) == (2, ())


def test_a_compiled_part(tmp_path: Path) -> None:
    batch = torch.randn(2, 3, 4, 4)
    model = lc.calibrate(Weighted(), [batch])
    expected = lc.export_onnx(model, tmp_path / "model.onnx", batch)
    model.last = torch.compile(model.last, backend="eager")
    file = lc.export_onnx(model, tmp_path / "compiled.onnx", batch)
    assert (file.integers, file.parity) == (expected.integers, expected.parity)
    assert file.unquantized_ops == expected.unquantized_ops == ("scaled_add",)
    assert file.path.read_bytes() == expected.path.read_bytes()


def test_norms_without_statistics_stay_floats(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    batch = torch.randn(4, 3, 4, 4)
    file = lc.export_onnx(lc.calibrate(model, [batch]), tmp_path / "model.onnx", batch)
    assert file.unquantized_ops == ("1.batch_norm", "2.relu")


def test_a_reduced_range_is_part_of_the_difference(tmp_path: Path) -> None:
    model, batch = SUBJECTS["conv1d"].quantized(), SUBJECTS["conv1d"].batch(64)
    full = lc.export_onnx(model, tmp_path / "full.onnx", batch, reduce_range=False)
    safe = lc.export_onnx(model, tmp_path / "safe.onnx", batch)
    # Run with precise kernels: in those that a CPU without VNNI has by default, sums of the full range overflow.
    expected, of_safe, of_full = outputs(model, batch), run(safe.path, batch), run(full.path, batch)
    assert safe.difference == pytest.approx(relative_difference(expected, of_safe), rel=1e-3)
    assert safe.difference > relative_difference(expected, of_full)
    assert safe.parity is not None
    assert max(safe.parity.steps.values()) <= 1
    assert safe.parity.overflowing == ()


def largest_pair(constant: np.ndarray) -> int:
    """Return the largest sum of two integers of a sign within a channel of a weight."""
    if constant.dtype != np.int8 or constant.ndim < 2:
        return 0
    rows = np.abs(constant.astype(int)).reshape(len(constant), -1) * (constant.reshape(len(constant), -1) > 0)
    return int(np.sort(rows, axis=1)[:, -2:].sum(axis=1).max())


class Overflowing:
    """A session on a CPU without VNNI: where sums of two products can overflow, each result is off by some LSB."""

    def __init__(self, model: bytes, session: Any) -> None:
        constants = [onnx.numpy_helper.to_array(c) for c in onnx.load_from_string(model).graph.initializer]
        self.overflows = max(map(largest_pair, constants)) > 128
        self.session = session

    def run(self, names: list[str], feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
        return [array + np.uint8(3) if self.overflows else array for array in self.session.run(names, feeds)]


def test_overflow_on_this_cpu_is_a_warning_and_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_vnni(model: bytes, *, precise: bool = False) -> Any:
        found = session(model, precise=precise)
        return found if precise else Overflowing(model, found)

    monkeypatch.setattr(parity, "session", without_vnni)
    model, batch = SUBJECTS["linear"].quantized(), SUBJECTS["linear"].batch(4)
    with pytest.warns(UserWarning, match=r"has no VNNI, 3 of 3 activations overflow .*reduce_range=True"):
        eight = lc.export_onnx(model, tmp_path / "8.onnx", batch, reduce_range=False)
    assert eight.parity is not None
    assert eight.parity.overflowing == tuple(eight.parity.steps) == tuple(eight.steps or ())
    assert max(eight.parity.steps.values()) <= 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seven = lc.export_onnx(model, tmp_path / "7.onnx", batch)
    assert seven.parity is not None
    assert seven.parity.overflowing == ()


def test_precise_kernels_are_asked_for_and_one_thread(linear: tuple[nn.Module, OnnxFile]) -> None:
    """On a CPU with VNNI both kinds of kernels compute the same, so that no result shows which ones ran."""
    options = [session(linear[1].path, precise=precise).get_session_options() for precise in (True, False)]
    key = "session.x64quantprecision"
    assert options[0].get_session_config_entry(key) == "1"
    with pytest.raises(RuntimeError, match=key):
        options[1].get_session_config_entry(key)
    assert [(each.intra_op_num_threads, each.inter_op_num_threads) for each in options] == [(1, 1), (1, 1)]


def test_bytes_for_weights_are_a_quarter_of_floats(tmp_path: Path) -> None:
    """TRAPS R3: a file of simulated integers would be as large as one of floats."""
    model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4096, 80))
    batch = torch.randn(2, 8, 10, 10)
    quantized = lc.calibrate(model, [batch])
    integers = lc.export_onnx(quantized, tmp_path / "integers.onnx", batch)
    floats = lc.export_onnx(lc.float_copy(quantized), tmp_path / "floats.onnx", batch)
    assert floats.num_bytes > 1_000_000
    assert integers.num_bytes < 0.35 * floats.num_bytes


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lightning_compress.export.requirements.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnxscript is missing: pip install 'lightning-compress\[export\]'"):
        lc.export_onnx(nn.Linear(2, 2), tmp_path / "model.onnx", torch.ones(2, 2))


class Inverse(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.erfinv(x)


class Values(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x[..., None].expand(-1, -1, 2))


class Two(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(2, -1)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Tanh(), Inverse())),
            r"Sequential could not be exported to ONNX, which has no operator for erfinv in '1\.1' \(prims\.erf_inv\): "
            "replace it by supported operators, or move it out of the model.",
        ),
        (Values(), r"no operator for linalg_svdvals \(aten\._linalg_svd\): replace"),
        (Two(), r"with a dynamic batch size, as it only supports that of the example; use dynamic_batch=False\.$"),
    ],
)
def test_what_onnx_does_not_know_is_one_sentence(model: nn.Module, words: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        lc.export_onnx(model, tmp_path / "model.onnx", torch.rand(2, 4))
    assert "\x1b" not in str(caught.value)
    assert "dynamic_batch" not in str(caught.value) or isinstance(model, Two)


def test_what_cannot_be_traced_is_one_sentence(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if bool(x.sum() > 0) else x

    (tmp_path / "model.onnx").write_text("old")
    with pytest.raises(ValueError, match=r"Branches could not be exported to ONNX, as it branches .*use torch\.where"):
        lc.export_onnx(Branches(), tmp_path / "model.onnx", torch.ones(2, 2))
    assert (tmp_path / "model.onnx").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_half_precision_takes_half_of_the_bytes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.Hardswish(), nn.Conv2d(64, 64, 3)).eval()
    x = torch.randn(2, 3, 8, 8)
    dense, file = (lc.export_onnx(model, tmp_path / f"{half}.onnx", x, half=half) for half in (False, True))
    assert file.num_bytes < 0.52 * dense.num_bytes
    assert 0 < file.difference < 1e-2
    graph = onnx.load(file.path).graph
    assert {each.type.tensor_type.elem_type for each in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
    assert {each.data_type for each in graph.initializer if len(each.dims) == 4} == {onnx.TensorProto.FLOAT16}
    with pytest.raises(ValueError, match=r"half=True is for models without quantizers: export lc\.float_copy"):
        lc.export_onnx(SUBJECTS["linear"].quantized(), tmp_path / "model.onnx", x, half=True)
