"""What fewer bits cost, against layers quantized by hand, and the choice under a budget, against all choices."""

from __future__ import annotations

import copy
import csv
import io
import itertools
import math
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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


def by_hand(model: nn.Module, layer: str, bits: int) -> nn.Module:
    """A copy in which a layer's weights are rounded, a scale for each output channel."""
    rounded = copy.deepcopy(model).eval()
    weight = rounded.get_submodule(layer).weight.data
    quant_max = 2 ** (bits - 1) - 1
    for channel in weight:
        scale = channel.abs().max() / quant_max
        channel.copy_((channel / scale).round().clamp(-quant_max, quant_max) * scale)
    return rounded


def mean_loss(model: nn.Module) -> float:
    return sum(loss(model, batch).item() for batch in batches()) / 3


def test_rises_are_those_of_layers_rounded_by_hand() -> None:
    model = make()
    found = lc.sensitivity(model, batches(), loss=loss, bits=(8, 2, 3))
    assert found.loss == mean_loss(copy.deepcopy(model).eval())
    assert [(e.layer, e.num_weights, e.bits) for e in found.effects] == [
        (layer, size, bits) for layer, size in (("0", 72), ("5", 128), ("6", 24)) for bits in (2, 3, 8)
    ]
    for effect in found.effects:
        expected = mean_loss(by_hand(model, effect.layer, effect.bits)) - found.loss
        assert effect.rise == pytest.approx(expected, abs=1e-6)
    assert max(abs(e.rise) for e in found.effects if e.bits == 2) > 1e-2  # else nothing was shown


def test_everything_is_left_as_it_was() -> None:
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


def test_randomness_of_the_loss_is_the_same_each_time() -> None:
    def noisy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss(model, batch) + 100 * torch.rand(())

    exact = lc.sensitivity(make(), batches(), loss=loss, bits=(4,))
    found = lc.sensitivity(make(), batches(), loss=noisy, bits=(4,))
    for ours, theirs in zip(found.effects, exact.effects, strict=True):
        assert ours.rise == pytest.approx(theirs.rise, abs=1e-4)


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


def test_what_is_refused() -> None:
    model = make()
    with pytest.raises(ValueError, match="there is no batch"):
        lc.sensitivity(model, [], loss=loss)
    with pytest.raises(ValueError, match="there is no number of bits"):
        lc.sensitivity(model, batches(), loss=loss, bits=())
    with pytest.raises(ValueError, match=r"bits=9\) must be a whole number from 2 to 8"):
        lc.sensitivity(model, batches(), loss=loss, bits=(9,))
    with pytest.raises(ValueError, match="must run that model, and not another"):
        lc.sensitivity(model, batches(), loss=lambda _, batch: loss(model, batch))
    with pytest.raises(ValueError, match="mean loss is nan in FP32"):
        lc.sensitivity(model, batches(), loss=lambda model, batch: loss(model, batch) * math.nan)


# The choice.


@st.composite
def measurements(draw: st.DrawFn) -> lc.Sensitivity:
    effects = []
    for layer in range(draw(st.integers(1, 5))):
        size = draw(st.integers(1, 500))
        for bits in sorted(draw(st.sets(st.integers(2, 8), min_size=1, max_size=3))):
            effects.append(Effect(f"layer{layer}", size, bits, draw(st.integers(-16, 160)) / 8))
    return lc.Sensitivity(1.0, tuple(effects))


def choices(found: lc.Sensitivity) -> list[tuple[Effect, ...]]:
    """All there are."""
    layers = [list(group) for _, group in itertools.groupby(found.effects, key=lambda e: e.layer)]
    return list(itertools.product(*layers))


def num_bytes(choice: tuple[Effect, ...]) -> int:
    return sum(math.ceil(e.num_weights * e.bits / 8) for e in choice)


def num_bits(choice: tuple[Effect, ...]) -> int:
    return sum(e.num_weights * e.bits for e in choice)


def rise(choice: tuple[Effect, ...]) -> float:
    return sum(e.rise for e in choice)


def as_choice(found: lc.Sensitivity, numbers: dict[str, lc.Int | None]) -> tuple[Effect, ...]:
    assert set(numbers) == {effect.layer for effect in found.effects}
    return tuple(e for e in found.effects if numbers[e.layer] == lc.Int(e.bits))


@given(measurements(), st.data())
@settings(deadline=None)
def test_the_choice_is_the_best_within_bytes(found: lc.Sensitivity, data: st.DataObject) -> None:
    sizes = [num_bytes(choice) for choice in choices(found)]
    budget = data.draw(st.integers(min(sizes), max(sizes) + 1))
    chosen = as_choice(found, found.choose(max_bytes=budget))
    assert num_bytes(chosen) <= budget
    assert rise(chosen) == min(rise(choice) for choice in choices(found) if num_bytes(choice) <= budget)


@given(measurements(), st.floats(2, 8))
@settings(deadline=None)
def test_the_choice_is_the_best_within_mean_bits(found: lc.Sensitivity, mean_bits: float) -> None:
    budget = mean_bits * sum(e.num_weights for e in choices(found)[0])
    possible = [choice for choice in choices(found) if num_bits(choice) <= budget]
    if not possible:
        with pytest.raises(ValueError, match="is impossible"):
            found.choose(mean_bits=mean_bits)
        return
    chosen = as_choice(found, found.choose(mean_bits=mean_bits))
    assert num_bits(chosen) <= budget
    assert rise(chosen) == min(map(rise, possible))


@given(measurements())
@settings(deadline=None)
def test_an_impossible_budget_names_the_smallest_one(found: lc.Sensitivity) -> None:
    smallest = min(map(num_bytes, choices(found)))
    with pytest.raises(ValueError, match=rf"max_bytes={smallest - 1} is impossible: .* {smallest} bytes") as refused:
        found.choose(max_bytes=smallest - 1)
    found.choose(max_bytes=smallest)
    found.choose(mean_bits=float(str(refused.value).partition(" bytes, or ")[2].split()[0]))


@pytest.mark.parametrize("budgets", [{}, {"max_bytes": 10, "mean_bits": 4.0}])
def test_one_budget_is_needed(budgets: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="give either max_bytes or mean_bits"):
        lc.Sensitivity(1.0, (Effect("a", 1, 2, 0.0),)).choose(**budgets)


def test_numbers_of_bits_without_a_finite_loss_are_not_chosen() -> None:
    broken = (Effect("a", 8, 2, math.nan), Effect("a", 8, 4, 1.0), Effect("a", 8, 8, math.inf))
    assert lc.Sensitivity(1.0, broken).choose(max_bytes=100) == {"a": lc.Int(4)}
    with pytest.raises(ValueError, match=r"is impossible: .* 4 bytes, or 4 bits"):
        lc.Sensitivity(1.0, broken).choose(max_bytes=3)
    with pytest.raises(ValueError, match="'a' has no finite loss"):
        lc.Sensitivity(1.0, broken[:1]).choose(max_bytes=100)


def test_the_choice_is_what_calibrate_makes_of_it() -> None:
    model = make()
    found = lc.sensitivity(model, batches(), loss=loss)
    chosen = found.choose(mean_bits=5)
    assert len(set(chosen.values())) > 1  # mixed, else the test shows little
    prepared = lc.calibrate(model, [batch[0] for batch in batches()], weights=chosen, activations=None)
    ref = {a.layer: a for a in quantizers_of(prepared)}
    assert ref.keys() == chosen.keys()
    for effect in as_choice(found, chosen):
        module, quantizer = ref[effect.layer].module, ref[effect.layer].quantizer
        expected = by_hand(model, effect.layer, effect.bits).get_submodule(effect.layer).weight
        torch.testing.assert_close(quantizer(module, module.weight), expected)
    lc.QuantizationAwareTraining(weights=chosen)


def test_a_layer_inside_another_keeps_its_own_number() -> None:
    effects = (Effect("a", 8, 2, 0.0), Effect("a.b", 8, 4, 0.0), Effect("c[0]", 8, 8, 0.0))
    chosen = lc.Sensitivity(1.0, effects).choose(mean_bits=8)
    assert list(chosen.items()) == [("a.b", lc.Int(4)), ("c[[]0]", lc.Int(8)), ("a", lc.Int(2))]


# What is shown.


def test_the_table() -> None:
    text = str(lc.Sensitivity(0.5, (Effect("a", 1000, 2, 0.25), Effect("a", 1000, 8, -1e-6))))
    cells = [[cell.strip() for cell in line.strip("│┃ ").replace("┃", "│").split("│")] for line in text.splitlines()]
    assert ["layer", "weights", "2 bits", "8 bits"] in cells
    assert ["a", "1,000", "+0.25", "-1e-06"] in cells
    assert text.endswith("The FP32 loss is 0.5.")


def test_csv_has_every_digit() -> None:
    found = lc.Sensitivity(0.5, (Effect("a,b", 1000, 2, 1 / 3),))
    (row,) = csv.DictReader(io.StringIO(found.to_csv()))
    assert row == {"layer": "a,b", "num_weights": "1000", "bits": "2", "rise": repr(1 / 3)}


ODD = lc.Sensitivity(
    0.0,
    (Effect("a", 8, 2, math.inf), Effect("a", 8, 4, 0.0), Effect("b", 8, 2, 1.0), Effect("b", 8, 4, math.nan)),
)


@pytest.mark.parametrize("found", [ODD, lc.Sensitivity(1.0, (Effect("a" * 200, 8, 2, -1.0),))])
def test_a_figure_of_odd_values(found: lc.Sensitivity, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    pytest.importorskip("matplotlib")
    found.figure(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert not [str(w.message) for w in recwarn]


def test_a_figure_without_matplotlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r'pip install "lightning-compress\[export\]"'):
        ODD.figure(tmp_path / "figure.png")
