"""Delta losses against layers quantized with plain torch, and their presentation."""

from __future__ import annotations

import copy
import csv
import io
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import lightning_compress as lc
from lightning_compress.quantization.insertion import is_quantized, quantizers_of
from lightning_compress.quantization.mixed_precision import Effect
from tests.cases import Net, assert_same


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.Linear(8, 3),
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def batches(number: int = 3) -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, 2, 4, 4), torch.randint(3, (16,))) for _ in range(number)]


def quantize_layer(model: nn.Module, layer: str, bits: int) -> nn.Module:
    """Return a copy with the weights of one layer fake-quantized, with a scale for each output channel."""
    rounded = copy.deepcopy(model).eval()
    weight = rounded.get_submodule(layer).weight.data
    quant_max = 2 ** (bits - 1) - 1
    for channel in weight:
        scale = channel.abs().max() / quant_max
        channel.copy_((channel / scale).round().clamp(-quant_max, quant_max) * scale)
    return rounded


def mean_loss(model: nn.Module) -> float:
    return sum(loss(model, batch).item() for batch in batches()) / 3


def test_delta_losses_are_those_of_layers_quantized_with_plain_torch() -> None:
    model = make()
    found = lc.sensitivity(model, batches(), loss=loss, bits=(8, 2, 3))
    assert found.loss == mean_loss(copy.deepcopy(model).eval())
    assert [(e.layer, e.num_weights, e.bits) for e in found.effects] == [
        (layer, size, bits) for layer, size in (("0", 72), ("5", 128), ("6", 24)) for bits in (2, 3, 8)
    ]
    for effect in found.effects:
        expected = mean_loss(quantize_layer(model, effect.layer, effect.bits)) - found.loss
        assert effect.delta_loss == pytest.approx(expected, abs=1e-6)
    # Otherwise the comparison proves nothing.
    assert max(abs(e.delta_loss) for e in found.effects if e.bits == 2) > 1e-2


def test_model_gradients_hooks_and_random_state_are_unchanged() -> None:
    model = make().train()
    model[5].weight.grad = torch.ones_like(model[5].weight)
    data = batches(1)
    before, random = copy.deepcopy(model), torch.get_rng_state()
    lc.sensitivity(model, data, loss=loss, bits=(2,))
    assert torch.equal(torch.get_rng_state(), random)
    assert_same(model.state_dict(), before.state_dict())
    assert all(module.training for module in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not is_quantized(model)
    assert (model[5].weight.grad == 1).all()


def test_a_random_loss_has_the_same_seed_in_every_measurement() -> None:
    def noisy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(model, batch) + 100 * torch.rand(())

    exact = lc.sensitivity(make(), batches(), loss=loss, bits=(4,))
    found = lc.sensitivity(make(), batches(), loss=noisy, bits=(4,))
    for ours, theirs in zip(found.effects, exact.effects, strict=True):
        assert ours.delta_loss == pytest.approx(theirs.delta_loss, abs=1e-4)


def test_targets_and_frozen_layers() -> None:
    model = make()
    model[6].requires_grad_(False)
    found = lc.sensitivity(model, batches(1), loss=loss, bits=(4,), targets=lc.Targets(exclude=("0",)))
    assert [effect.layer for effect in found.effects] == ["5"]
    found = lc.sensitivity(make().requires_grad_(False), batches(1), loss=loss, bits=(4,))
    assert [effect.layer for effect in found.effects] == ["0", "5", "6"]


def test_a_model_with_quantizers_is_measured_without_them() -> None:
    model = make()
    quantized = lc.calibrate(model, [batch[0] for batch in batches()], weights=lc.Int(2), activations=lc.Int(2))
    assert lc.sensitivity(quantized, batches(), loss=loss) == lc.sensitivity(model, batches(), loss=loss)
    assert is_quantized(quantized)


def test_a_lightning_module_under_its_own_names() -> None:
    data = [(torch.randn(8, 4, 5, 5), torch.randint(4, (8,)))]
    found = lc.sensitivity(Net(), data, loss=lambda model, batch: model.training_step(batch, 0), bits=(2,))
    assert [effect.layer for effect in found.effects] == ["conv1", "conv2", "fc"]


def test_errors_of_arguments() -> None:
    model = make()
    with pytest.raises(ValueError, match="there is no batch"):
        lc.sensitivity(model, [], loss=loss)
    with pytest.raises(ValueError, match="there is no number of bits"):
        lc.sensitivity(model, batches(), loss=loss, bits=())
    with pytest.raises(ValueError, match=r"bits=9\) must be an integer from 2 to 8"):
        lc.sensitivity(model, batches(), loss=loss, bits=(9,))
    with pytest.raises(ValueError, match="must run that model, and not another"):
        lc.sensitivity(model, batches(), loss=lambda _, batch: loss(model, batch))
    with pytest.raises(ValueError, match="mean loss is nan in FP32"):
        lc.sensitivity(model, batches(), loss=lambda model, batch: loss(model, batch) * math.nan)


def test_a_choice_is_a_specification_for_calibrate_and_training() -> None:
    model = make()
    found = lc.sensitivity(model, batches(), loss=loss)
    chosen = found.choose(mean_bits=5)
    assert len(set(chosen.values())) > 1  # otherwise the choice is not mixed
    prepared = lc.calibrate(model, [batch[0] for batch in batches()], weights=chosen, activations=None)
    ref = {a.layer: a for a in quantizers_of(prepared)}
    assert ref.keys() == chosen.keys()
    for effect in (e for e in found.effects if chosen[e.layer] == lc.Int(e.bits)):
        module, quantizer = ref[effect.layer].module, ref[effect.layer].quantizer
        expected = quantize_layer(model, effect.layer, effect.bits).get_submodule(effect.layer).weight
        torch.testing.assert_close(quantizer(module, module.weight), expected)
    lc.QuantizationAwareTraining(weights=chosen)


def test_the_table() -> None:
    text = str(lc.Sensitivity(0.5, (Effect("a", 1000, 2, 0.25), Effect("a", 1000, 8, -1e-6))))
    cells = [[cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")] for line in text.splitlines()]
    assert ["layer", "weights", "2 bits", "8 bits"] in cells
    assert ["a", "1,000", "+0.25", "-1e-06"] in cells
    assert text.endswith("The FP32 loss is 0.5.")


def test_csv_has_every_digit() -> None:
    found = lc.Sensitivity(0.5, (Effect("a,b", 1000, 2, 1 / 3),))
    (row,) = csv.DictReader(io.StringIO(found.to_csv()))
    assert row == {"layer": "a,b", "num_weights": "1000", "bits": "2", "delta_loss": repr(1 / 3)}


SPECIAL = lc.Sensitivity(
    0.0,
    (Effect("a", 8, 2, math.inf), Effect("a", 8, 4, 0.0), Effect("b", 8, 2, 1.0), Effect("b", 8, 4, math.nan)),
)


@pytest.mark.parametrize("found", [SPECIAL, lc.Sensitivity(1.0, (Effect("a" * 200, 8, 2, -1.0),))])
def test_a_figure_of_negative_and_infinite_values(
    found: lc.Sensitivity, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    pytest.importorskip("matplotlib")
    found.figure(tmp_path / "figure.png")
    found.heat_map(tmp_path / "heat_map.png")
    for name in ("figure.png", "heat_map.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "heat_map.png"]
    assert not [str(w.message) for w in recwarn]


def test_a_heat_map_has_a_color_for_each_layer_and_number_of_bits(tmp_path: Path) -> None:
    image = pytest.importorskip("matplotlib.image")
    deltas = {("a", 2): 1.0, ("a", 4): 1e-3, ("b", 2): -0.5, ("b", 4): 1e-3}
    lc.Sensitivity(0.0, tuple(Effect(n, 8, b, d) for (n, b), d in deltas.items())).heat_map(tmp_path / "map.png")
    pixels = image.imread(tmp_path / "map.png")[..., :3]
    yellow, violet, gray = (0.993, 0.906, 0.144), (0.267, 0.005, 0.329), (0.85, 0.85, 0.85)  # high, low, not positive
    areas = [int((abs(pixels - color).max(axis=2) < 0.01).sum()) for color in (yellow, violet, gray)]
    assert areas[0] > 5000
    assert areas == pytest.approx([areas[0], 2 * areas[0], areas[0]], rel=0.1)


def test_a_figure_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-compress\[export\]"'):
        SPECIAL.figure(tmp_path / "figure.png")
