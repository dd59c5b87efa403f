from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.arguments import as_arguments
from lightning_compress.quantization.insertion import is_quantized, quantizers_of
from tests.cases import assert_same, scales_of
from tests.quantization.nets import Residual


def images(seed: int = 0, num: int = 4) -> Tensor:
    return torch.randn(num, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_the_model_is_not_modified() -> None:
    model = Residual()
    model.first.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quantized = lc.calibrate(model, [images()])
    assert_same(dict(model.state_dict()), before)
    assert model.training
    assert not is_quantized(model)
    assert not model.first[0].weight.requires_grad
    assert not quantized.first[0].weight.requires_grad
    assert not quantized.training


def test_ranges_cover_all_batches() -> None:
    options: dict[str, Any] = {"activations": lc.Int(8, observer=lc.MinMax())}
    batches = [images(seed) * (seed + 1) for seed in range(3)]
    together = lc.calibrate(Residual().eval(), [torch.cat(batches)], **options)
    model = Residual().eval()
    model.load_state_dict({k: v for k, v in together.state_dict().items() if "quant_" not in k})
    streamed = lc.calibrate(model, iter(batches), **options)
    assert_same(scales_of(streamed.state_dict()), scales_of(together.state_dict()))


def test_a_moving_average_is_updated_per_batch() -> None:
    batches = [scale * torch.ones(4, 2) for scale in (1.0, 1.0, 11.0)]
    for observer, largest in ((lc.MovingAverage(0.1), 2.0), (lc.MovingAverage(1.0), 11.0), (lc.MinMax(), 11.0)):
        model = lc.calibrate(
            nn.Sequential(nn.Linear(2, 2)), iter(batches), activations=lc.Int(8, observer=observer), weights=None
        )
        torch.testing.assert_close(model[0].quant_linear_input_0_scale, torch.tensor(largest / 255))


def test_batches_are_released() -> None:
    kept: list[weakref.ref[Tensor]] = []

    def batches() -> Iterator[Tensor]:
        for seed in range(5):
            assert sum(batch() is not None for batch in kept) <= 2  # the first and the previous one
            batch = images(seed)
            kept.append(weakref.ref(batch))
            yield batch

    lc.calibrate(Residual(), batches())


def test_every_quantizer_is_ready_and_stops_observing() -> None:
    for ref in quantizers_of(lc.calibrate(Residual(), [images()])):
        assert ref.quantizer.ready
        assert ref.quantizer.quantizing
        assert ref.quantizer.observing == 0
        assert ref.quantizer.observed is None


@pytest.mark.parametrize("observer", [lc.MinMax(), lc.Percentile(99.0), lc.MSE(), lc.Histogram(), lc.Learned()])
def test_every_observer_calibrates(observer: Any) -> None:
    torch.manual_seed(0)  # for about one seed in eight, Histogram clips more than the tolerance
    model = Residual()
    numbers = lc.Int(8, observer=observer)
    quantized = lc.calibrate(model, [images(0, 32)], weights=numbers, activations=numbers)
    expected, found = model.eval()(images(1)), quantized(images(1))
    assert (found - expected).norm() < 0.15 * expected.norm()


def test_no_batch() -> None:
    with pytest.raises(ValueError, match="calibrate: there is no batch"):
        lc.calibrate(Residual(), [])


def test_the_error_for_nan_names_the_quantizer() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(ValueError, match=r"NaN or infinity observed at '0\.linear_input_0': check the inputs"):
        lc.calibrate(model, [torch.tensor([[1.0, float("nan")]])])


def test_inputs_are_tensors_tuples_or_dicts() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(2, 2)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.linear(x + y)

    x, y = torch.ones(3, 2), torch.ones(3, 2) * 2
    model = Sum()
    found = [lc.calibrate(model, [inputs]) for inputs in ((x, y), [x, y], {"x": x, "y": y}, ((x,), {"y": y}))]
    for other in found[1:]:
        assert_same(scales_of(other.state_dict()), scales_of(found[0].state_dict()))
    assert as_arguments(x) == ((x,), {})
