from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.quantization.insertion import QuantizerRef
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.scale_updates import update_scales


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(spec: lc.Int, shape: tuple[int, ...], axis: int = 0) -> tuple[nn.Module, Quantizer]:
    """Return a module and its observing quantizer for a weight of a shape."""
    module, quantizer = nn.Module(), Quantizer("weight", spec.for_weights(), axis=axis, is_weight=True)
    quantizer.attach(module, quantizer.scale_shape(torch.Size(shape)))
    quantizer.observing = 1
    return module, quantizer


def activation(spec: lc.Int = lc.Int(8, observer=lc.MinMax())) -> tuple[nn.Module, Quantizer]:
    module, quantizer = nn.Module(), Quantizer("relu", spec.for_activations())
    quantizer.attach(module, torch.Size())
    return module, quantizer


@pytest.mark.parametrize(
    ("spec", "shape", "axis", "scales"),
    [
        (lc.Int(8), (6, 4, 3, 3), 0, (6,)),
        (lc.Int(8), (6, 4, 3, 3), 1, (4,)),
        (lc.Int(4, granularity="tensor"), (6, 4), 0, ()),
        (lc.Int(4, granularity=2), (6, 8), 0, (6, 4)),
        (lc.Int(4, symmetric=False), (6, 8), 0, (6,)),
    ],
)
def test_scales_of_weights(spec: lc.Int, shape: tuple[int, ...], axis: int, scales: tuple[int, ...]) -> None:
    module, quantizer = weight(spec, shape, axis)
    w = normal(*shape)
    rounded = quantizer(module, w)
    assert rounded.shape == w.shape
    assert module.quant_weight_scale.shape == scales
    assert hasattr(module, "quant_weight_zero_point") == (spec.symmetric is False)
    rows = {0: w.flatten(1), 1: w.movedim(1, 0).flatten(1)}[axis] if len(scales) == 1 else w.reshape(-1, 2)
    if len(scales) == 0:
        rows = w.reshape(1, -1)
    steps = 2 ** (spec.bits - 1) - 1
    if spec.symmetric is None:
        expected = (rows.abs().amax(dim=1) / steps).view(scales)
        torch.testing.assert_close(module.quant_weight_scale, expected)
    assert (rounded - w).abs().max() <= module.quant_weight_scale.max() * 0.5001
    assert quantizer.to_integers(module, w).unique().numel() <= 2**spec.bits


def test_tensors_are_unchanged_until_the_first_update() -> None:
    module, quantizer = activation()
    x = normal(20, 3)
    assert quantizer(module, x) is x
    assert module.quant_relu_scale == 0
    quantizer.observing = 1
    assert quantizer(module, x) is x  # statistics apply from the next update
    quantizer.update(module)
    assert quantizer.ready
    assert not torch.equal(quantizer(module, x), x)
    quantizer.quantizing = False
    assert quantizer(module, x) is x


def test_statistics_since_the_last_update_are_merged() -> None:
    module, quantizer = activation()
    quantizer.observing = 1
    for x in (torch.tensor([0.0, 1.0]), torch.tensor([0.5, 2.55])):
        quantizer(module, x)
    quantizer.update(module)
    torch.testing.assert_close(module.quant_relu_scale, torch.tensor(0.01))
    assert module.quant_relu_zero_point == 0
    before = module.quant_relu_scale.clone()
    quantizer.update(module)  # nothing was observed
    assert torch.equal(module.quant_relu_scale, before)


def test_a_part_of_the_batch_is_observed_with_a_minimum_of_samples() -> None:
    for num, part, observed in [(160, 8, 20), (40, 8, 16), (8, 8, 8), (160, 1, 160)]:
        module, quantizer = activation()
        quantizer.observing = part
        quantizer(module, torch.arange(num).float().unsqueeze(1).expand(-1, 512))
        assert quantizer.observed is not None
        assert quantizer.observed.min_max[0, 1] == observed - 1


@pytest.mark.parametrize("factor", [torch.ones(256, 1, 1), nn.Parameter(torch.ones(196, 64))])
def test_channel_factors_and_parameters_are_observed_as_a_whole(factor: Tensor) -> None:
    module, quantizer = activation()
    quantizer.observing = 8
    factor.data[-1] = 10.0
    quantizer(module, factor)
    assert quantizer.observed is not None
    assert quantizer.observed.min_max[0, 1] == 10.0


def test_a_learned_scale_is_a_parameter_that_is_initialized_once() -> None:
    module, quantizer = activation(lc.Int(4, observer=lc.Learned()))
    assert dict(module.named_parameters()).keys() == {"quant_relu_scale", "quant_relu_zero_point"}
    quantizer.observing = 1
    quantizer(module, normal(100, 3))
    quantizer.update(module)
    before = module.quant_relu_scale.detach().clone()
    assert before > 0
    quantizer(module, 100 * normal(100, 3))
    quantizer.update(module)
    assert torch.equal(module.quant_relu_scale, before)
    quantizer(module, normal(10, 3)).sum().backward()
    assert module.quant_relu_scale.grad is not None


def test_a_learned_scale_is_observed_until_fake_quantization_starts() -> None:
    spec = lc.Int(4, observer=lc.Learned())
    for module, quantizer in (activation(spec), weight(spec, (100, 3))):
        quantizer.observing, quantizer.quantizing = 1, False
        scales = []
        for factor in (64.0, 1.0, 8.0):
            quantizer(module, factor * normal(100, 3))
            quantizer.update(module)
            scales.append(quantizer.scale(module).detach() / factor)
        torch.testing.assert_close(scales[1], scales[0])
        torch.testing.assert_close(scales[2], scales[0])
        quantizer.quantizing = True
        quantizer(module, normal(100, 3))
        quantizer.update(module)
        torch.testing.assert_close(quantizer.scale(module).detach() / 8, scales[0])


@pytest.mark.parametrize("is_ready", [True, False])
def test_a_learned_scale_has_a_zero_gradient_until_fake_quantization_starts(is_ready: bool) -> None:
    module, quantizer = activation(lc.Int(4, observer=lc.Learned()))
    quantizer.quantizing, quantizer.ready = False, is_ready
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = normal(10, 3).to(dtype).requires_grad_()
        rounded = quantizer(module, x)
        assert torch.equal(rounded, x)
        assert rounded.dtype is dtype
        rounded.sum().backward()
        assert torch.equal(x.grad, torch.ones_like(x))
    assert [parameter.grad for parameter in module.parameters()] == [0, 0]
    with torch.no_grad():
        assert quantizer(module, x) is x


@pytest.mark.parametrize(("learned", "applied"), [(-0.7, 0), (0.6, 1), (15.8, 15), (-40.0, 0)])
def test_zero_stays_zero_for_any_learned_zero_point(learned: float, applied: int) -> None:
    module, quantizer = activation(lc.Int(4, observer=lc.Learned()))
    quantizer.ready = True
    module.quant_relu_scale.data.fill_(0.5)
    module.quant_relu_zero_point.data.fill_(learned)
    x = torch.tensor([[0.0, -100.0, 100.0]])
    assert quantizer(module, x).tolist() == [[0.0, -0.5 * applied, 0.5 * (15 - applied)]]
    assert quantizer.qparams(module)[1] == applied
    assert quantizer.to_integers(module, x).tolist() == [[applied, 0, 15]]


@pytest.mark.parametrize(
    ("zero_point", "x", "moves"),
    [(7.0, 100.0, True), (-0.7, 100.0, False), (-0.7, -100.0, True), (15.7, 100.0, True), (15.7, -100.0, False)],
)
def test_zero_points_get_no_gradient_away_from_the_range(zero_point: float, x: float, moves: bool) -> None:
    """Values clipped from above pull the zero point down, values clipped from below pull it up."""
    module, quantizer = activation(lc.Int(4, observer=lc.Learned()))
    quantizer.ready = True
    module.quant_relu_scale.data.fill_(0.5)
    module.quant_relu_zero_point.data.fill_(zero_point)
    values = torch.full((1, 4), x)
    (quantizer(module, values) - values).square().sum().backward()
    assert (module.quant_relu_zero_point.grad != 0) == moves
    assert module.quant_relu_zero_point.grad * x >= 0


def test_gradients_of_a_learned_scale_are_normalized_by_the_number_of_values() -> None:
    """All six values are clipped to one step: three per channel of a weight, three per sample of an activation."""
    spec = lc.Int(2, symmetric=True, observer=lc.Learned())
    for (module, quantizer), gradient in (
        (weight(spec, (2, 3)), [3 / 3**0.5, 3 / 3**0.5]),
        (activation(spec), 6 / 3**0.5),
    ):
        quantizer.observing, quantizer.ready = 0, True
        scale = quantizer.scale(module)
        scale.data.fill_(1.0)
        assert quantizer(module, torch.full((2, 3), 5.0)).tolist() == [[1, 1, 1], [1, 1, 1]]
        quantizer(module, torch.full((2, 3), 5.0)).sum().backward()
        torch.testing.assert_close(scale.grad, torch.tensor(gradient))


def test_a_learned_scale_may_cross_zero() -> None:
    module, quantizer = activation(lc.Int(4, symmetric=True, observer=lc.Learned()))
    quantizer.ready = True
    x = normal(50)
    rounded = []
    for sign in (1.0, -1.0):
        module.quant_relu_scale.data.fill_(0.1 * sign)
        rounded.append(quantizer(module, x))
    torch.testing.assert_close(*rounded)
    module.quant_relu_scale.data.zero_()
    assert torch.isfinite(quantizer(module, x)).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("reducers", [(), (lambda tensor: tensor,) * 2], ids=["one process", "ranks"])
def test_nan_and_infinity_are_named_with_the_quantizer(bad: float, reducers: tuple[Any, ...]) -> None:
    module, quantizer = activation()
    quantizer.observing = 1
    quantizer(module, torch.tensor([1.0, bad]))
    with pytest.raises(
        ValueError, match=r"NaN or infinity observed at 'net\.relu': check the inputs, and lower the learning rate"
    ):
        update_scales([QuantizerRef("net", module, quantizer)], *reducers)


def test_empty_channels_stay_zero_and_finite() -> None:
    module, quantizer = weight(lc.Int(8), (3, 4))
    w = normal(3, 4)
    w[1] = 0.0
    rounded = quantizer(module, w)
    assert torch.equal(rounded[1], torch.zeros(4))
    assert (module.quant_weight_scale > 0).all()


def test_zeros_of_a_sparse_weight_stay_zero() -> None:
    for spec in (lc.Int(4), lc.Int(4, symmetric=False), lc.Int(2, granularity=2), lc.Int(4, observer=lc.MSE())):
        module, quantizer = weight(spec, (8, 8))
        w = normal(8, 8)
        w[torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) < 0.5] = 0.0
        assert (quantizer(module, w)[w == 0] == 0).all()


def test_an_averaged_zero_point_is_rounded() -> None:
    module, quantizer = activation()
    quantizer.ready = True
    module.quant_relu_scale.fill_(0.1)
    module.quant_relu_zero_point.fill_(2.6)
    assert quantizer(module, torch.tensor([0.0, -9.0])).tolist() == pytest.approx([0.0, -0.3])
    assert quantizer.qparams(module)[1] == 3


def test_half_precision_is_quantized_in_float32() -> None:
    module, quantizer = activation()
    quantizer.observing = 1
    x = normal(64, 4).bfloat16()
    quantizer(module, x)
    quantizer.update(module)
    assert module.quant_relu_scale.dtype is torch.float32
    rounded = quantizer(module, x)
    assert rounded.dtype is torch.bfloat16
    assert torch.equal(rounded, quantizer(module, x.float()).bfloat16())


def test_copy_from_another_module() -> None:
    (module, quantizer), (other_module, other) = activation(), activation()
    quantizer.copy_from(module, other_module, other)
    assert not quantizer.ready
    other.observing = 1
    other(other_module, normal(20))
    other.update(other_module)
    quantizer.copy_from(module, other_module, other)
    assert quantizer.ready
    assert torch.equal(module.quant_relu_scale, other_module.quant_relu_scale)
    assert torch.equal(module.quant_relu_zero_point, other_module.quant_relu_zero_point)


def test_detaching_removes_buffers_and_parameters() -> None:
    for spec in (lc.Int(8), lc.Int(8, symmetric=True), lc.Int(8, observer=lc.Learned())):
        module, quantizer = activation(spec)
        quantizer.detach(module)
        assert not module.state_dict()
