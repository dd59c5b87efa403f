"""Values with a meaning keep it: statistics, scores, masks, losses, padding; other people's layers are told."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.quantization.placement import Placement
from lightning_compress.quantization.tracing import trace
from lightning_compress.quantization.value_roles import fp32_values
from tests.cases import Loader, trainer


def sqnr(expected: Tensor, actual: Tensor) -> float:
    return float(10 * torch.log10(expected.square().sum() / (expected - actual).square().sum().clamp_min(1e-30)))


def rms(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


def root_of_product(x: Tensor) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + 1e-6).sqrt()


def layer_norm(x: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).pow(2).mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + 1e-6)


def standardize(x: Tensor) -> Tensor:
    return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + 1e-6)


class Normalized(nn.Module):
    """A normalization by hand with an affine map, before a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.weight, self.bias = nn.Parameter(torch.ones(16)), nn.Parameter(torch.zeros(16))
        self.fc = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.function(x) * self.weight + self.bias)


def power(x: Tensor) -> Tensor:
    return x * (x**2).mean(-1, keepdim=True).add(1e-6) ** -0.5


@pytest.mark.parametrize("function", [rms, root_of_product, layer_norm, standardize, power])
def test_one_loud_sample_takes_nothing_from_the_others(function: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x, model = torch.randn(8, 10, 16), Normalized(function).eval()
    x[0] *= 300
    with torch.no_grad():
        assert sqnr(model(x)[1:], lc.calibrate(model, [x])(x)[1:]) > 30


def test_a_residual_stream_before_a_norm_is_quantized() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.norm = nn.Linear(16, 16), Normalized(layer_norm)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.a(x))
            return self.norm(y + self.a(y))

    placement = Placement(trace(Block().eval(), torch.randn(2, 16)), {"a": True, "norm.fc": True})
    assert "add" in {point.name for point in placement.activations() if point.module == ""}
    assert not [point for point in placement.activations() if point.module == "norm" and point.call.function == "mean"]


@pytest.mark.parametrize("low", [-1e9, float("-inf")])
def test_scores_of_einsum_and_masks_are_not_quantized(low: float) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = self.qkv(x).chunk(3, -1)
            scores = 3 * torch.einsum("bid,bjd->bij", q, k) + torch.full((6, 6), low).triu(1)
            return self.out(torch.einsum("bij,bjd->bid", scores.softmax(-1), v))

    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(8, 6, 16)
    if low == -1e9:
        with torch.no_grad():
            assert sqnr(model(x), lc.calibrate(model, [x])(x)) > 25
    placement = Placement(trace(model, x), {"qkv": True, "out": True})
    assert [node.call.function for node in placement.unquantized_ops()].count("einsum") == 2


def test_loud_activations_are_no_masks() -> None:
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Conv1d(4, 2, 3)).eval()
    graph = trace(model, 30000 * torch.randn(2, 1, 32))
    assert graph.masks
    assert fp32_values(graph, graph.users()) == set()


class OwnLoss(LightningModule):
    """A LightningModule that is its own network and holds its loss."""

    class Loss(nn.Module):
        def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
            return ((prediction - target) * (prediction - target)).mean()

    def __init__(self) -> None:
        super().__init__()
        self.net, self.loss = nn.Linear(6, 4), self.Loss()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.net(x.flatten(1)[:, :6]))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.loss(self(batch[0]), F.one_hot(batch[1], 4).float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.01)


def test_losses_are_not_quantized() -> None:
    model = OwnLoss()
    trainer([lc.QuantizationAwareTraining()], max_steps=2).fit(model, Loader())
    names = [name for name in model.state_dict() if "quant_" in name]
    assert names
    assert not [name for name in names if name.startswith("loss")]


def test_padding_with_a_value_is_between_two_scales() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.pad(F.relu(self.a(x)), (1, 1, 1, 1), value=50.0))

    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    model = lc.calibrate(Padded(), [x])
    assert float(model.quant_constant_pad_scale) == pytest.approx(50 / 255, rel=1e-3)
    assert float(model.quant_relu_scale) < 0.05


@pytest.mark.parametrize(
    "observer", [lc.MinMax(), lc.MovingAverage(), lc.Histogram(), lc.Percentile(), lc.MSE()], ids=repr
)
def test_an_empty_batch_adds_nothing_to_a_range(observer: object) -> None:
    torch.manual_seed(0)
    model, x, spec = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)), torch.randn(8, 4), lc.Int(8, observer=observer)
    with_empty = lc.calibrate(model, [x, torch.empty(0, 4)], activations=spec)
    without = lc.calibrate(model, [x], activations=spec)
    assert torch.equal(with_empty(x), without(x))
    with torch.no_grad():
        assert sqnr(model(x), without(x)) > 20


def test_a_scripted_module_is_opaque() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), torch.jit.script(nn.Tanh()), nn.Linear(4, 2)).eval(), torch.randn(8, 4)
    assert trace(model, x).opaque == ["1"]
    with torch.no_grad():
        assert sqnr(model(x), lc.calibrate(model, [x])(x)) > 25


def test_a_layer_of_another_kind_is_an_error_that_names_it() -> None:
    class Conv1D(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.zeros(8))

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(self.bias, x, self.weight)

    targets = lc.Targets(types=(nn.Linear, Conv1D))
    with pytest.raises(ValueError, match=r"The target '1' \(Conv1D\) computes by 'addmm'.*replace it by nn\.Linear"):
        lc.calibrate(nn.Sequential(nn.Linear(4, 8), Conv1D()), [torch.randn(8, 4)], targets=targets)


def test_an_encoder_with_a_padding_mask_is_quantized() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 1)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.encoder(x, src_key_padding_mask=mask)

    torch.manual_seed(0)
    mask = torch.zeros(4, 5, dtype=torch.bool)
    mask[:, 3:] = True
    model, x = Padded().eval(), torch.randn(4, 5, 8)
    with torch.no_grad():
        expected, found = model(x, mask), lc.calibrate(model, [(x, mask)])(x, mask)
    assert sqnr(expected[:, :3], found[:, :3]) > 25
