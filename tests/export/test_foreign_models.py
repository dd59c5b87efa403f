"""Forms of other people's models: shared and equal weights, flags, nested outputs, other dtypes and operator sets."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.export.onnx import exporter
from lightning_compress.export.onnx.runtime import run, session

onnx = pytest.importorskip("onnx")
pytestmark = pytest.mark.filterwarnings("ignore:.*has no VNNI:UserWarning")


class SharedHead(nn.Module):
    """A head of two layers on several inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.out = nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.head(self.head(x)) + self.head(x * 2))


class Squared(nn.Module):
    """A product of two equal differences, which the exporter computes once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(x), self.b(x)
        return self.out((a - b) * (a - b))


def equal_layers() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[4].load_state_dict(model[2].state_dict())
    return model


@pytest.mark.parametrize("make", [SharedHead, Squared, equal_layers])
def test_layers_that_share_constants(make: type[nn.Module], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    model = lc.finalize(lc.calibrate(make().eval(), [x]), example_inputs=x)
    file = lc.export_onnx(model, tmp_path / "model.onnx", x)
    assert file.parity is not None
    assert max(file.parity.steps.values()) <= 1
    # With ONNX Runtime's precise kernels too, which rewrite the constants of each layer.
    (actual,) = run(session(file.path), ((x,), {}))
    torch.testing.assert_close(actual, model(x), rtol=0.05, atol=0.05)


def test_flags_and_numbers_among_the_inputs_are_constants(tmp_path: Path) -> None:
    class Flags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor, negate: bool = False, times: float = 1.0, mask: Tensor | None = None) -> Tensor:
            return self.fc(x) * (-times if negate else times)

    inputs = {"x": torch.randn(4, 4), "negate": True, "times": 2.0, "mask": None}
    file = lc.export_onnx(lc.calibrate(Flags().eval(), [inputs]), tmp_path / "model.onnx", inputs)
    assert [each.name for each in onnx.load(file.path).graph.input] == ["x"]
    assert file.difference < 0.1


def test_nested_outputs_have_the_names_of_their_keys(tmp_path: Path) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> dict[str, object]:
            hidden = F.relu(self.a(x))
            return {"hidden_states": (x * 1.0, hidden), "logits": self.b(hidden)}

    x = torch.randn(3, 4)
    file = lc.export_onnx(Nested().eval(), tmp_path / "model.onnx", x)
    outputs = onnx.load(file.path).graph.output
    assert [each.name for each in outputs] == ["hidden_states_0", "hidden_states_1", "logits"]
    assert [each.shape[-1] for each in run(session(file.path), ((x,), {}))] == [4, 4, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_dtypes_are_an_error_that_says_what_to_do(dtype: torch.dtype, tmp_path: Path) -> None:
    for model in (nn.Linear(4, 4).to(dtype), nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4).to(dtype))):
        with pytest.raises(ValueError, match=rf"has the dtype {dtype}.*export model\.float\(\)"):
            lc.export_onnx(model.eval(), tmp_path / "model.onnx", torch.randn(2, 4, dtype=dtype))
    assert not list(tmp_path.iterdir())


def test_an_opset_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    pooled = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2))
    model = lc.calibrate(pooled, [x])
    with pytest.raises(ValueError, match=r"could not be written with opset=17: its operators need opset \d+"):
        lc.export_onnx(model, tmp_path / "model.onnx", x, opset=17)
    assert not list(tmp_path.iterdir())
    file = lc.export_onnx(nn.Linear(4, 4), tmp_path / "model.onnx", torch.randn(2, 4), opset=20)
    assert [each.version for each in onnx.load(file.path).opset_import if each.domain == ""] == [20]


class Repeated(nn.Module):
    """Linear layer on tokens that is called three times, as in a network with shared layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.layer(x)
        return x


@pytest.mark.parametrize("shape", [(4, 6), (4, 5, 6), (4, 2, 5, 6)])
def test_a_linear_layer_on_tokens_that_is_called_several_times(shape: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    file = lc.export_onnx(lc.calibrate(Repeated(), [x]), tmp_path / "model.onnx", x)
    assert file.integers is not None
    assert file.integers.integer == {"linear": 3}


class Counted(nn.Sequential):
    """Network that counts the passes and the copies of it."""

    passes = copies = 0

    def forward(self, x: Tensor) -> Tensor:
        Counted.passes += 1
        return super().forward(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        Counted.copies += 1
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        vars(copied).update(copy.deepcopy(vars(self), memo))
        return copied


def test_an_export_copies_the_model_twice_and_runs_it_three_times(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(64, 2)]
    x = torch.randn(4, 2, 6, 6)
    model = lc.calibrate(Counted(*layers), [x])
    Counted.passes = Counted.copies = 0
    lc.export_onnx(model, tmp_path / "model.onnx", x)
    assert (Counted.copies, Counted.passes) == (2, 3)


def test_images_of_any_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    quantized = lc.calibrate(model, [torch.randn(2, 3, 12, 16)])
    file = lc.export_onnx(quantized, tmp_path / "model.onnx", torch.randn(2, 3, 12, 16), dynamic_size=True)
    x = torch.randn(3, 3, 20, 9)
    (actual,) = run(session(file.path), ((x,), {}))
    torch.testing.assert_close(actual, quantized(x), rtol=0.05, atol=0.05)


def test_a_model_of_one_input_size_has_no_dynamic_size(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with pytest.raises(ValueError, match=r"fixes the size of its inputs, .*: use dynamic_size=False\.$"):
        lc.export_onnx(model, tmp_path / "model.onnx", torch.randn(2, 6), dynamic_size=True)
    assert not list(tmp_path.iterdir())


class Decoder(nn.Module):
    """Transformer that looks for a causal mask among the values of the one it is given."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.layers, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(x, mask=nn.Transformer.generate_square_subsequent_mask(x.shape[1])))


@pytest.mark.parametrize("dynamic_size", [False, True])
def test_a_causal_mask_of_a_transformer(dynamic_size: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 5, 8)
    model = Decoder().eval()
    quantized = lc.calibrate(model, [x])
    file = lc.export_onnx(quantized, tmp_path / "model.onnx", x, dynamic_size=dynamic_size)
    assert file.integers is not None
    assert file.integers.integer["linear"] > 4
    (actual,) = run(session(file.path), ((x,), {}))
    torch.testing.assert_close(actual, model(x), rtol=0.1, atol=0.1)


MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "roll": lambda y: y.roll((1, 1), (2, 3)),
    "pixel shuffle": lambda y: F.pixel_unshuffle(F.pixel_shuffle(y, 2), 2),
    "expand": lambda y: y[:, :1].expand(-1, 4, -1, -1),
    "repeat": lambda y: y[:, :2].repeat(1, 2, 1, 1),
    "stack": lambda y: torch.stack([y, y])[0],
    "transposition": lambda y: y.mT,
    "windows": lambda y: y.reshape(-1, 2, 2, 36).permute(0, 2, 1, 3).reshape(-1, 4, 6, 6),
}


class Moved(nn.Module):
    """Residual addition of a branch, the values of which are moved."""

    def __init__(self, move: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.move = move
        self.a, self.b, self.out = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.a(x) + self.move(self.b(x)))


@pytest.mark.parametrize("move", MOVES)
def test_additions_of_moved_values_are_computed_in_integers(move: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    file = lc.export_onnx(lc.calibrate(Moved(MOVES[move]).eval(), [x]), tmp_path / "model.onnx", x)
    assert file.integers is not None
    assert (file.integers.integer["add"], file.integers.integer["conv"]) == (1, 3)


class Branching(nn.Module):
    """Network that branches on a value."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return y if y.sum() > 0 else -y


def test_a_failed_export_prints_nothing_and_leaves_nothing_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    x = torch.randn(4, 4)
    model = lc.calibrate(Branching().eval(), [x])
    with pytest.raises(ValueError, match=r"branches on values of a tensor .*; use torch\.where there\.$"):
        lc.export_onnx(model, tmp_path / "model.onnx", x)
    assert "".join(capfd.readouterr()) == ""
    file = lc.export_onnx(model.layers, tmp_path / "model.onnx", x)
    assert file.integers is not None
    assert file.integers.integer == {"linear": 2}


class Queries(nn.Module):
    """Decoder with learned queries: its first layers compute the same for any input."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(3, 8))
        self.first, self.keys, self.out = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        queries = self.first(self.queries.expand(x.shape[0], -1, -1))
        return self.out(torch.softmax(queries @ self.keys(x).mT, dim=-1) @ x)


class Supervised(nn.Module):
    """Network with a head for training, which it computes and drops in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.out = nn.Linear(8, 8), nn.Linear(8, 4), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        y = F.relu(self.first(x))
        outputs = self.out(y), F.relu(self.head(y))
        return outputs if self.training else outputs[0]


def test_heads_without_a_reader_are_not_exported(tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    file = lc.export_onnx(lc.calibrate(Supervised().eval(), [x]), tmp_path / "model.onnx", x)
    assert file.integers is not None
    assert file.integers.integer == {"linear": 2}


def test_a_function_that_cannot_be_translated_is_named(tmp_path: Path) -> None:
    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(x, x, x)

    words = r"^Attention could not be exported to ONNX: scaled_dot_product_attention cannot be translated \(.*4D.*\); "
    with pytest.raises(ValueError, match=words):
        lc.export_onnx(Attention(), tmp_path / "model.onnx", torch.randn(2, 3, 4))


@pytest.mark.parametrize("dynamic_batch", [True, False])
def test_layers_on_constants(dynamic_batch: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 8)
    model = lc.calibrate(Queries().eval(), [x])
    file = lc.export_onnx(model, tmp_path / "model.onnx", x, dynamic_batch=dynamic_batch)
    assert file.integers is not None
    assert file.integers.integer["linear"] >= 2
    (actual,) = run(session(file.path), ((x,), {}))
    torch.testing.assert_close(actual, model(x), rtol=0.05, atol=0.05)


class Scaled(nn.Module):
    """Blocks with equal learned scales and equal offsets, which the exporter stores once."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.scales = nn.ParameterList(torch.full((4,), 0.9) for _ in range(3))
        self.offsets = nn.ParameterList(torch.zeros(4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer, scale, offset in zip(self.layers, self.scales, self.offsets, strict=True):
            x = F.relu(layer(x)) ** 2 * scale + offset
        return x


def test_equal_constants_of_several_blocks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    file = lc.export_onnx(lc.calibrate(Scaled().eval(), [x]), tmp_path / "model.onnx", x)
    assert file.parity is not None
    assert max(file.parity.steps.values()) <= 1


class Experts(nn.Module):
    """The third expert gets no tokens."""

    def __init__(self, *, learned: bool) -> None:
        super().__init__()
        self.router, self.out = nn.Linear(8, 3), nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.router.bias.data = torch.tensor([9.0, 9.0, -99.0])
        self.learned = learned

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.router(x).argmax(1) if self.learned else (x[:, 0] > 0).long()
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero().squeeze(1)
            out = out.index_add(0, rows, expert(x[rows]))
        return self.out(out.relu())


def test_experts_without_tokens(tmp_path: Path) -> None:
    """Their quantizers never observe a batch: they stay in FP32, and the file is the simulation's."""
    x = torch.randn(16, 8)
    model = lc.calibrate(Experts(learned=False), [x])
    file = lc.export_onnx(model, tmp_path / "model.onnx", x)
    assert "experts.2.linear" in file.unquantized_ops
    assert "experts.0.linear" not in file.unquantized_ops
    (actual,) = run(session(file.path), ((x,), {}))
    torch.testing.assert_close(actual, model(x), rtol=0.05, atol=0.05)


def test_where_rounding_changes_shapes_there_is_no_comparison_of_activations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    model = lc.calibrate(Experts(learned=True), [x])
    with pytest.warns(UserWarning, match=r"could not be compared one by one \(.*Expand"):
        file = lc.export_onnx(model, tmp_path / "model.onnx", x)
    assert file.steps == {}


def test_a_file_that_does_not_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = nn.Linear(4, 2), torch.randn(3, 4)
    written = lc.export_onnx(net, tmp_path / "first.onnx", x).path.read_bytes()
    monkeypatch.setattr(exporter, "session", lambda path: session(written[: len(written) // 2]))
    with pytest.raises(ValueError, match=r"ONNX Runtime cannot run the file of Linear \(.*\): write the operation in"):
        lc.export_onnx(net, tmp_path / "model.onnx", x)
    assert not (tmp_path / "model.onnx").exists()


def test_excluded_layers_compute_in_fp32(tmp_path: Path) -> None:
    """ONNX Runtime would quantize their weights by itself, with one scale for channels of any size."""
    layers = [nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU6(), nn.Conv2d(8, 4, 3)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 4))
    with torch.no_grad():
        for excluded in (net[2], net[6]):
            excluded.weight[0] *= 100.0
    x = torch.randn(4, 3, 8, 8)
    model = lc.calibrate(net, [x], targets=lc.Targets(exclude=("2", "6")))
    file = lc.export_onnx(model, tmp_path / "model.onnx", x, reduce_range=False)
    assert file.integers.integer == {"conv": 2, "linear": 1}
    (actual,) = run(session(file.path, precise=True), ((x,), {}))
    # With scales per tensor, 5 dB of the other channels were left.
    noise = (actual - model(x)).square().sum()
    assert 10 * torch.log10(model(x).square().sum() / noise) > 30
    assert all(number == 0 for name, number in file.steps.items() if name.startswith(("3.", "6.")))


def test_3d_convolutions_without_bias_before_a_norm(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv3d(2, 4, 3, bias=False), nn.InstanceNorm3d(4), nn.ReLU(), nn.Conv3d(4, 2, 3, bias=False))
    x = torch.randn(2, 2, 8, 8, 8)
    file = lc.export_onnx(lc.calibrate(net, [x]), tmp_path / "model.onnx", x)
    assert file.integers.integer["conv"] == 2


def test_sums_by_python_and_parts_that_nothing_reads(tmp_path: Path) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv1d(4, 4, 3, padding=1) for _ in range(3))
            self.last = nn.Conv1d(4, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = sum(x + conv(F.relu(x)) for conv in self.convs) / 3
            _, kept = self.last(x).split([2, 4], 1)
            return kept + 1.0 * x

    x = torch.randn(4, 4, 16)
    model = lc.calibrate(Branches(), [x])
    file = lc.export_onnx(model, tmp_path / "model.onnx", x)
    assert file.integers.integer == {"conv": 4, "add": 6}
    (actual,) = run(session(file.path), ((x,), {}))
    torch.testing.assert_close(actual, model(x), rtol=0.05, atol=0.05)


def test_biases_are_those_of_the_coarser_scales(tmp_path: Path) -> None:
    """Where a sum of products has coarser steps than the activation, the rounding of a bias is more than 1 LSB."""
    net = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1))
    with torch.no_grad():
        net[0].weight.fill_(100.0)
        net[0].bias.copy_(torch.tensor([0.37, 0.21, -0.4, 0.13]))
    x = 1.0 + 1e-3 * torch.randn(8, 1, 4, 4)
    with torch.no_grad():
        net[0].bias -= 100.0
    model = lc.calibrate(net, [x])
    file = lc.export_onnx(model, tmp_path / "model.onnx", x)
    assert max(file.steps.values()) <= 1
