"""Forms of other people's models: shared and equal weights, flags, nested outputs, other dtypes and operator sets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.export.onnx.runtime import run_file

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
    (actual,) = run_file(file.path, ((x,), {}))
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
    assert [each.shape[-1] for each in run_file(file.path, ((x,), {}))] == [4, 4, 2]


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
