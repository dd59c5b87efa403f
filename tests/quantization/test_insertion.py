"""Models with quantizers: outputs, state dict keys, copies, and removal of the quantizers."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.quantization.call_patcher import patcher_of
from lightning_compress.quantization.insertion import (
    is_quantized,
    quantizers_of,
    remove_quantizers,
)
from lightning_compress.quantization.quantizer import Quantizer
from lightning_compress.quantization.quantizer_plan import QuantizerPlan
from tests.cases import plain, scales_of
from tests.quantization.nets import Dense, Gate, Keywords, Residual, Scores, Statements, conv

NETS: dict[str, Callable[[], nn.Module]] = {
    "residual": Residual,
    "gate": Gate,
    "dense": Dense,
    "statements": Statements,
    "keywords": Keywords,
    "silu": lambda: nn.Sequential(conv(), nn.SiLU(), nn.Conv2d(4, 4, 1)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(4, 3, 2), nn.ReLU6(), nn.Conv2d(3, 4, 1)),
    "norms": lambda: nn.Sequential(
        nn.Conv2d(4, 4, 1), nn.GroupNorm(2, 4), nn.ReLU(), nn.InstanceNorm2d(4), nn.Flatten()
    ),
    "attention": lambda: nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(9, 3, 8, batch_first=True)),
}
every_net = pytest.mark.parametrize("make", NETS.values(), ids=NETS)


def images(seed: int = 0, num: int = 4) -> Tensor:
    return torch.randn(num, 4, 3, 3, generator=torch.Generator().manual_seed(seed))


def calibrated(make: Callable[[], nn.Module] = Residual, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return lc.calibrate(make(), [images()], **options)


@every_net
def test_eight_bits_are_close_to_fp32(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    quantized = lc.calibrate(model, [images()])
    expected, found = model(images()), quantized(images())
    assert not torch.equal(found, expected)
    assert (found - expected).abs().max() < 0.06 * expected.abs().max()


@every_net
def test_without_fake_quantization_outputs_are_unchanged(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    quantized = lc.calibrate(model, [images()])
    for ref in quantizers_of(quantized):
        ref.quantizer.quantizing = False
    torch.testing.assert_close(quantized(images()), model(images()))


@every_net
@pytest.mark.parametrize("observer", [None, lc.Learned()], ids=["fixed", "learned"])
def test_every_network_has_finite_gradients(make: Callable[[], nn.Module], observer: Any) -> None:
    numbers = lc.Int(8, observer=observer)
    model = calibrated(make, weights=numbers, activations=numbers).train()
    model(images()).square().mean().backward()
    grads = [p.grad for p in model.parameters()]
    assert all(torch.isfinite(g).all() for g in grads if g is not None)
    assert sum(g is not None for g in grads) > 0


@every_net
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_have_equal_outputs_and_their_own_quantizers(copied: Callable, make: Callable[[], nn.Module]) -> None:
    model = calibrated(make)
    twin = copied(model)
    assert torch.equal(twin(images(1)), model(images(1)))
    theirs, ours = ([id(a.quantizer) for a in quantizers_of(m)] for m in (twin, model))
    assert not set(theirs) & set(ours)
    with torch.no_grad():
        for ref in quantizers_of(twin):
            ref.quantizer.scale(ref.module).mul_(3)
    assert not torch.equal(twin(images(1)), model(images(1)))


@pytest.mark.parametrize("make", [Residual, Gate], ids=["residual", "gate"])
def test_one_graph_when_compiled(make: Callable[[], nn.Module]) -> None:
    # Inside another module: hooks of the outermost module run outside of the graph, where its mode would also count
    # the functions that the "eager" backend calls (Inductor calls none).
    model = nn.Sequential(calibrated(make))
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(images(1)), model(images(1)))
    torch._dynamo.reset()


@pytest.mark.parametrize("masked", [torch.finfo(torch.float32).min, float("-inf")], ids=["least", "infinite"])
@pytest.mark.parametrize("how", ["add", "where", "bias", "function"])
def test_attention_masks_keep_their_effect(how: str, masked: float) -> None:
    torch.manual_seed(0)
    model, x = Scores(how, masked).eval(), torch.randn(2, 5, 8)
    quantized = lc.calibrate(model, [x])
    expected, found = model(x), quantized(x)
    assert (found - expected).abs().max() < 0.06 * expected.abs().max()


def test_weights_equal_those_of_torch_fake_quantize() -> None:
    model = calibrated(lambda: nn.Sequential(nn.Conv2d(4, 3, 1, bias=False)), activations=None)
    weight = model[0].weight
    scale = weight.detach().abs().amax(dim=(1, 2, 3)) / 127
    rounded = torch.fake_quantize_per_channel_affine(weight, scale, torch.zeros(3, dtype=torch.int32), 0, -127, 127)
    torch.testing.assert_close(model(images()), F.conv2d(images(), rounded))


def test_activations_are_quantized_at_their_producer() -> None:
    model = calibrated(lambda: nn.Sequential(nn.Conv2d(4, 3, 1), nn.ReLU()), weights=None)
    outputs = model(images())
    scale = float(model[1].quant_relu_scale)
    assert torch.equal((outputs / scale).round() * scale, outputs)
    assert outputs.unique().numel() <= 256


def test_layers_read_quantized_inputs_after_in_place_functions() -> None:
    model = calibrated(Statements, weights=None)
    made: list[Tensor] = []
    for layer in (model.second, model.third):
        layer.weight.data.fill_(1.0)
        layer.bias.data.zero_()
        layer.register_forward_hook(lambda m, args, output: made.append(output.clone()))
    for ref in quantizers_of(model):
        ref.quantizer.quantizing = "input" in ref.name
        ref.quantizer.scale(ref.module).fill_(0.25)
    model(images())
    assert len(made) == 2
    for output in made:  # sums of four multiples of the scale
        assert output.any()
        assert torch.equal(output * 4, (output * 4).round())


def test_a_shared_relu_has_a_quantizer_for_each_call() -> None:
    model = calibrated()
    keys = set(scales_of(model.state_dict()))
    assert {"relu.quant_relu_scale", "relu.quant_relu_call_1_scale"} <= keys
    assert model.relu.quant_relu_scale != model.relu.quant_relu_call_1_scale


@every_net
def test_keys_are_the_plain_ones_with_additional_buffers(make: Callable[[], nn.Module]) -> None:
    model, fresh = calibrated(make), make()
    assert list(plain(model.state_dict())) == list(fresh.state_dict())
    fresh.load_state_dict(plain(model.state_dict()), strict=True)


@every_net
def test_removal_restores_the_plain_model(make: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = make().eval()
    quantized = lc.calibrate(model, [images()])
    remove_quantizers(quantized)
    assert not is_quantized(quantized)
    assert list(quantized.state_dict()) == list(model.state_dict())
    assert torch.equal(quantized(images()), model(images()))
    for module in quantized.modules():
        assert patcher_of(module) is None
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._load_state_dict_pre_hooks


def test_a_state_dict_rebuilds_the_quantizers() -> None:
    for make in NETS.values():
        model = calibrated(make)
        fresh = make()
        targets = {target.layer: True for target in lc.Targets().select(fresh)}
        QuantizerPlan(lc.Int(8), lc.Int(8), targets).insert_stored(fresh, model.state_dict())
        fresh.load_state_dict(model.state_dict(), strict=True)
        assert torch.equal(fresh.eval()(images(1)), model(images(1)))


def test_an_fp32_state_dict_can_be_loaded() -> None:
    model = calibrated()
    model.load_state_dict(Residual().state_dict(), strict=True)
    assert not any(ref.quantizer.ready for ref in quantizers_of(model))
    assert torch.isfinite(model(images())).all()


def test_specifications_by_globs() -> None:
    model = calibrated(weights={"first": lc.Int(4), "second": None}, activations={"relu": None, "*": lc.Int(6)})
    bits = {ref.name: ref.quantizer.spec.bits for ref in quantizers_of(model)}
    assert bits["first.0.weight"] == 4
    assert "second.0.weight" not in bits
    assert not any(name.startswith("relu") for name in bits)
    assert {bits[name] for name in bits if not name.endswith("weight")} == {6}


@pytest.mark.parametrize("what", ["weights", "activations"])
def test_a_glob_that_matches_nothing(what: str) -> None:
    with pytest.raises(ValueError, match=rf"{what}: 'head' matches nothing that is quantized; the modules are "):
        calibrated(**{what: {"head": lc.Int(4), "*": lc.Int(8)}})


def test_groups_of_a_linear_layer() -> None:
    model = lc.calibrate(nn.Linear(8, 3), [torch.randn(5, 8)], weights=lc.Int(4, granularity=4), activations=None)
    assert model.quant_weight_scale.shape == (3, 2)
    rounded = next(a.quantizer(a.module, model.weight) for a in quantizers_of(model))
    assert (rounded - model.weight).abs().max() <= 0.5001 * model.quant_weight_scale.max()


def test_zeros_and_equal_weights_survive() -> None:
    model = Residual()
    with torch.no_grad():
        weight = model.first[0].weight
        weight.flatten()[::2] = 0.0
        weight.flatten()[1::2] = weight.flatten()[1]
    for ref in quantizers_of(lc.calibrate(model, [images()], weights=lc.Int(3))):
        if ref.name == "first.0.weight":
            rounded = ref.quantizer(ref.module, ref.module.weight).flatten()
            assert (rounded[::2] == 0).all()
            assert rounded[1::2].unique().numel() == 1


def test_every_quantizer_has_a_name_of_its_own() -> None:
    for make in NETS.values():
        names = [ref.name for ref in quantizers_of(calibrated(make))]
        assert len(names) == len(set(names))
        assert all(isinstance(ref.quantizer, Quantizer) for ref in quantizers_of(calibrated(make)))


def test_a_module_in_two_places() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.first = nn.ReLU(), nn.Linear(8, 8)
            self.head = nn.Sequential(nn.LayerNorm(8), self.act, nn.Linear(8, 2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.act(self.first(x)))

    torch.manual_seed(0)
    model, x = Shared().eval(), torch.randn(16, 8)
    quantized = lc.calibrate(model, [x])
    assert {ref.name for ref in quantizers_of(quantized) if ref.layer == "act"} == {"act.relu", "act.relu_call_1"}
    assert (quantized(x) - model(x)).abs().max() < 0.05
