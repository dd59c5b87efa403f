"""LoweredModel models against their fake-quantized simulation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.quantization import lowering
from lightning_compress.quantization.backend_operators import BackendOperators, Bias, QParams, QuantizedLayer, Weight
from lightning_compress.quantization.finalize import copy_for_deployment
from lightning_compress.quantization.insertion import is_quantized, quantizers_of
from lightning_compress.quantization.lowering import LoweredModel
from lightning_compress.quantization.simulation import simulate
from tests.cases import assert_same
from tests.export.nets import SUBJECTS, Subject, outputs

SUBJECT = SUBJECTS["residual"]


class Eager(BackendOperators):
    """Operators that compute with integral values in FP32."""

    name = "PyTorch"

    def __init__(self, *, unsigned: bool = True) -> None:
        self.unsigned = unsigned

    def activation(self, x: Tensor, qparams: QParams) -> Tensor:
        q = (torch.round(x * (1 / qparams.scale)) + qparams.zero_point).clamp(qparams.quant_min, qparams.quant_max)
        return (q - qparams.zero_point) * qparams.scale

    def weight(self, weight: Weight) -> Tensor:
        return weight.dequantize()

    def bias(self, bias: Bias) -> Tensor:
        return bias.integers * bias.scale


def lower(model: nn.Module, inputs: Any, operators: BackendOperators) -> LoweredModel:
    return lowering.lower(simulate(copy_for_deployment(model, "", "test"), inputs), operators)


def lowered_of(model: nn.Module, subject: Subject = SUBJECT, **kwargs: Any) -> LoweredModel:
    return lower(model, subject.batch(2), Eager(), **kwargs)


def layers(lowered: LoweredModel) -> Mapping[str, QuantizedLayer]:
    return {layer.name: layer for layer in lowered.layers}


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("unsigned", [True, False])
def test_a_lowered_model_is_within_1_lsb_of_the_simulation(name: str, unsigned: bool) -> None:
    subject = SUBJECTS[name]
    model = subject.quantized()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    lowered = lower(model, subject.batch(2), Eager(unsigned=unsigned))
    assert_same({**model.state_dict()}, before)
    assert not is_quantized(lowered.model)
    for ours, theirs in zip(outputs(model, subject.batch(3)), outputs(lowered.model, subject.batch(3)), strict=True):
        step = max(qparams.scale for qparams in lowered.activations if qparams.name == lowered.activations[-1].name)
        assert (ours - theirs).abs().max() <= 2.01 * step
    quant_min, quant_max = (0, 255) if unsigned else (-128, 127)
    assert all(
        quant_min <= qparams.quant_min <= qparams.zero_point <= qparams.quant_max <= quant_max
        for qparams in lowered.activations
    )


def test_batch_norms_only_rescale_channels() -> None:
    model = SUBJECT.quantized()
    layer = layers(lowered_of(model))["conv1"]
    ref = next(a for a in quantizers_of(model) if a.name == "conv1.weight")
    integers = ref.quantizer.to_integers(ref.module, model.conv1.weight)
    gammas = model.bn1.weight.detach()
    assert layer.weight.integers.dtype == torch.int8
    assert (layer.weight.scale > 0).all()
    assert (layer.weight.integers[gammas == 0] == 0).all()
    normal = (gammas.abs() > 1e-4).nonzero().flatten().tolist()
    for channel in normal:
        assert_same(layer.weight.integers[channel].int(), integers[channel] * int(gammas[channel].sign()))


def test_folded_weight_and_bias_equal_convolution_and_norm() -> None:
    model = SUBJECT.quantized()
    layer = layers(lowered_of(model))["conv2"]
    factor = model.bn2.weight / torch.sqrt(model.bn2.running_var + model.bn2.eps)
    scale = next(a for a in quantizers_of(model) if a.name == "conv2.weight")
    rounded = scale.quantizer(scale.module, model.conv2.weight)
    torch.testing.assert_close(layer.weight.dequantize(), (rounded * factor[:, None, None, None]).detach())
    assert isinstance(layer.bias, Bias)
    expected = (model.conv2.bias - model.bn2.running_mean) * factor + model.bn2.bias
    torch.testing.assert_close(layer.bias.value, expected.detach(), atol=1e-4, rtol=1e-4)
    assert layer.input is not None
    torch.testing.assert_close(layer.bias.scale, layer.weight.scale * layer.input.scale)


def test_zero_weights_stay_zero() -> None:
    model = SUBJECT.quantized()
    for name, layer in layers(lowered_of(model)).items():
        assert (layer.weight.integers[model.get_submodule(name).weight == 0] == 0).all()


def test_biases_never_overflow() -> None:
    model = SUBJECT.quantized()
    with torch.no_grad():
        model.bn1.weight.copy_(torch.tensor([0.0, 1e-30, -1e-12, 1e-8, 1.0, 1.0, 1.0, 1.0]))
        model.bn1.bias.fill_(5.0)
    layer = layers(lowered_of(model))["conv1"]
    assert isinstance(layer.bias, Bias)
    assert layer.bias.integers.abs().max() < 1.001 * 2**30
    torch.testing.assert_close(layer.bias.value[0], torch.tensor(5.0), atol=1e-3, rtol=0)


def test_weight_only_quantization_keeps_biases_and_activations_in_fp32() -> None:
    torch.manual_seed(0)
    model = lc.calibrate(SUBJECT.make(), [SUBJECT.batch(4)], activations=None)
    lowered = lowered_of(model)
    assert lowered.activations == []
    assert all(layer.input is None and not isinstance(layer.bias, Bias) for layer in lowered.layers)
    (ours,), (theirs,) = outputs(model, SUBJECT.batch(3)), outputs(lowered.model, SUBJECT.batch(3))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_layers_that_are_not_targets_are_listed() -> None:
    model = lc.calibrate(SUBJECT.make(), [SUBJECT.batch(4)], targets=lc.Targets(exclude=("squeeze",)))
    lowered = lowered_of(model)
    assert "squeeze" not in layers(lowered)
    assert lowered.unquantized_ops == ["squeeze.conv2d"]


class Added(nn.Module):
    """Addition between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.last = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.left(x) + self.right(x)))


def test_calls_with_fp32_inputs_are_listed() -> None:
    x = torch.randn(8, 4)
    lowered = lower(lc.calibrate(Added(), [x], activations={"": None, "*": lc.Int(8)}), x, Eager())
    assert lowered.unquantized_ops == ["add", "relu", "last.linear"]
    everything = lower(lc.calibrate(Added(), [x], activations=None), x, Eager())
    assert everything.unquantized_ops == ["left.linear", "right.linear", "add", "relu", "last.linear"]
    assert lower(lc.calibrate(Added(), [x]), x, Eager()).unquantized_ops == []


def test_layers_with_fp32_weights_are_listed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU())
    x = torch.randn(8, 3, 2, 2)
    lowered = lower(lc.calibrate(model, [x], weights=None), x, Eager())
    assert lowered.unquantized_ops == ["0.conv2d", "1.batch_norm"]


def test_quantized_additions_have_the_parameters_of_their_outputs() -> None:
    x = torch.randn(8, 4)
    (addition,) = lower(lc.calibrate(Added(), [x]), x, Eager()).ops
    assert (addition.name, addition.module, addition.function, addition.qparams.name) == ("add", "", "add", "relu")


def test_norms_with_batch_statistics_are_not_folded() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    x = torch.randn(8, 3, 2, 2)
    quantized = lc.calibrate(model, [x])
    lowered = lower(quantized, x, Eager())
    assert lowered.unquantized_ops == ["1.batch_norm", "2.relu"]
    # One LSB of the convolution, as the norm scales it.
    step = lowered.activations[-1].scale / float(model[0](x).std(dim=(0, 2, 3)).min())
    assert (outputs(quantized, x)[0] - outputs(lowered.model, x)[0]).abs().max() <= 1.01 * step
    torch.testing.assert_close(lc.finalize(quantized, example_inputs=x)(x), quantized(x), atol=1.01 * step, rtol=0)


def test_norms_after_grouped_transposed_convolutions_are_not_folded() -> None:
    lowered = lowered_of(SUBJECTS["transposed"].quantized(), SUBJECTS["transposed"])
    assert lowered.unquantized_ops == ["4.batch_norm", "7.batch_norm"]
    biases = {name: layer.bias for name, layer in layers(lowered).items()}
    assert isinstance(biases["0"], Bias)
    assert [None if b is None else tuple(b.shape) for b in (biases["3"], biases["6"], biases["8"])] == [
        (6,),
        None,
        (6,),
    ]


@pytest.mark.parametrize("inside", [True, False])
def test_a_compiled_model_is_lowered_as_if_it_were_not_compiled(inside: bool) -> None:
    model, x = SUBJECT.quantized(), SUBJECT.batch(2)
    expected = lower(model, x, Eager())
    names = [qparams.name for qparams in expected.activations]
    compiled = torch.compile(model, backend="eager")
    lowered = lower(nn.Sequential(compiled) if inside else compiled, x, Eager())
    assert [qparams.name for qparams in lowered.activations] == [f"0.{name}" if inside else name for name in names]
    assert_same(outputs(lowered.model, x), outputs(expected.model, x))


def test_invalid_example_inputs_raise_one_sentence() -> None:
    model = lc.calibrate(nn.Sequential(nn.Linear(4, 4)), [torch.randn(8, 4)])
    words = r"Could not run the model on the example inputs \(.*mat1 and mat2 .*\): give inputs that it runs on\.$"
    with pytest.raises(ValueError, match=words):
        lower(model, torch.randn(2, 5), Eager())


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "conv2.weight",
            "'conv2' has NaN or infinity in its weight: training has diverged; load an earlier",
        ),
        ("fc.bias", "'fc' has NaN or infinity in its bias"),
        ("bn1.running_var", "'bn1' has NaN or infinity in its statistics"),
    ],
)
def test_nan_in_parameters_and_statistics_is_named(name: str, words: str) -> None:
    model = SUBJECT.quantized()
    with torch.no_grad():
        model.state_dict()[name].flatten()[0] = torch.nan
    with pytest.raises(ValueError, match=words):
        lowered_of(model)


def test_results_without_propagated_parameters_are_quantized_again() -> None:
    class NotPropagating(Eager):
        not_propagated = frozenset({"flatten", "chunk"})

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.fc(x.flatten(1)).chunk(2, dim=1)
            return left * right

    model = lc.calibrate(Halves(), [torch.randn(8, 2, 4)])
    plain, again = (lower(model, torch.randn(2, 2, 4), backend) for backend in (Eager(), NotPropagating()))
    assert not any(qparams.is_requantized for qparams in plain.activations)
    assert [qparams.name for qparams in again.activations if qparams.is_requantized] == ["fc.linear", "fc.linear"]
    x = torch.randn(3, 2, 4)
    assert_same(outputs(plain.model, x), outputs(again.model, x))


def test_models_that_cannot_be_lowered() -> None:
    with pytest.raises(ValueError, match="The model has no quantizers"):
        lowered_of(SUBJECT.make())
    model = SUBJECT.quantized()
    for ref in quantizers_of(model):
        ref.quantizer.ready = False
    with pytest.raises(ValueError, match=r"The observer of '.*' has never observed a batch"):
        lowered_of(model)


def test_what_never_observed_a_batch_stays_in_fp32_and_is_listed() -> None:
    """Experts without tokens, and calls of evaluation alone."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.fc(x).relu()
            return x if self.training else self.head(x.sigmoid()).softmax(1)

    net, x = Late(), torch.randn(16, 8)
    model = lc.calibrate(net, [x])
    unready = [ref for ref in quantizers_of(model) if ref.name.startswith(("head", "sigmoid"))]
    assert len(unready) >= 2
    for ref in unready:
        ref.quantizer.ready = False
    lowered = lower(model, x, Eager())
    assert [layer.name for layer in lowered.layers] == ["fc"]
    assert {"head.linear", "sigmoid"} <= set(lowered.unquantized_ops)
    assert_same(outputs(lowered.model, x), outputs(model, x))


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        (lc.Int(8, symmetric=False), "The weights of 'fc' are affine"),
        (lc.Int(4, granularity=4), "The weights of 'fc' have a scale for each group of 4 inputs"),
    ],
)
def test_weights_without_integer_kernels_are_named(numbers: lc.Int, words: str) -> None:
    model = lc.calibrate(SUBJECT.make(), [SUBJECT.batch(4)], weights={"fc": numbers, "*": lc.Int(8)})
    with pytest.raises(ValueError, match=words):
        lowered_of(model)


class Frozen(nn.Module):
    """Batch norm of buffers, as detection networks have it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        for name, value in {"weight": 0.5, "bias": 0.0, "mean": 0.0, "var": 0.5}.items():
            self.register_buffer(name, value + torch.rand(4))
        self.offset = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        scale = (self.weight * (self.var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        bias = self.bias.reshape(1, -1, 1, 1)
        match self.how:
            case "products":
                return x * scale + (bias - self.mean.reshape(1, -1, 1, 1) * scale)
            case "centered":
                return scale * (x - self.mean[:, None, None]) / 2.0 + self.offset
            case _:
                return x.mul_(scale).add_(bias)


@pytest.mark.parametrize("how", ["products", "centered", "in-place"])
def test_affine_maps_of_constants_are_folded(how: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), Frozen(how), nn.ReLU(), nn.Conv2d(4, 4, 1, bias=False), Frozen(how))
    with torch.no_grad():
        model[0].weight.mul_(torch.tensor([1e-2, 1.0, 10.0, -50.0]).view(-1, 1, 1, 1))
        model[1].weight.mul_(torch.tensor([100.0, 1.0, 0.1, -0.02]))
    x = torch.randn(8, 3, 6, 6)
    quantized = lc.calibrate(model.eval(), [x])
    assert {ref.name for ref in quantizers_of(quantized) if not ref.quantizer.is_weight} == {
        "0.conv2d_input_0",
        "2.relu",
        "4.add_1",
    }
    lowered = lower(quantized, x, Eager())
    assert lowered.unquantized_ops == []
    assert not any("mul" in op.function for op in lowered.ops)
    step = lowered.activations[-1].scale
    assert (outputs(quantized, x)[0] - outputs(lowered.model, x)[0]).abs().max() <= 1.01 * step


def test_affine_maps_of_one_position_are_not_folded() -> None:
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Parameter(torch.randn(1, 5, 4))
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) + self.embedding

    x = torch.randn(2, 5, 4)
    lowered = lower(lc.calibrate(Positions(), [x]), x, Eager())
    assert [op.name for op in lowered.ops] == ["add"]


def test_an_affine_map_with_a_second_reader_before_it_is_not_folded() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("scale", torch.rand(4))

        def forward(self, x: Tensor) -> Tensor:
            y = self.fc(x)
            return y * self.scale + y

    x = torch.randn(2, 4)
    lowered = lower(lc.calibrate(Both(), [x]), x, Eager())
    assert [op.name for op in lowered.ops] == ["mul", "add"]
