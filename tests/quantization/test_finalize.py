"""Copies for deployment."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.arguments import as_arguments
from lightning_compress.export.onnx.runtime import feeds_of, session
from lightning_compress.quantization.insertion import is_quantized, quantizers_of
from tests.cases import assert_same
from tests.export.nets import SUBJECTS, outputs

SUBJECT = SUBJECTS["residual"]


def test_finalize_copies_in_eval_mode_with_frozen_parameters() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    plain = lc.finalize(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not plain.training
    assert not any(p.requires_grad for p in plain.parameters())
    plain[0].weight.data.zero_()
    assert model[0].weight.abs().sum() > 0


def test_finalize_keeps_quantizers_and_outputs() -> None:
    model = SUBJECT.quantized()
    plain = lc.finalize(model)
    assert is_quantized(plain)
    weights = {ref.name for ref in quantizers_of(model) if ref.quantizer.is_weight}
    assert weights
    for name, tensor in model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor) != (name in weights), name
    assert_same(outputs(plain, SUBJECT.batch(2)), [t.detach() for t in outputs(model, SUBJECT.batch(2))])
    assert_same(outputs(pickle.loads(pickle.dumps(plain)), SUBJECT.batch(2)), outputs(plain, SUBJECT.batch(2)))


def test_finalize_writes_fake_quantized_weights() -> None:
    model = SUBJECT.quantized()
    plain = lc.finalize(model)
    for ours, theirs in zip(quantizers_of(plain), quantizers_of(model), strict=True):
        if not ours.quantizer.is_weight:
            continue
        weight, trained = (a.module.get_parameter("weight") for a in (ours, theirs))
        integers = ours.quantizer.to_integers(ours.module, weight)
        assert torch.equal(integers, theirs.quantizer.to_integers(theirs.module, trained))
        scale = ours.quantizer.scale(ours.module)
        assert torch.equal(weight, integers * scale.view(-1, *[1] * (weight.ndim - 1)))
        assert not (weight.signbit() & (weight == 0)).any()


@pytest.mark.parametrize("name", ["residual", "dense", "named"])
def test_with_example_inputs_finalize_computes_the_same_as_the_exported_model(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    subject = SUBJECTS[name]
    few = lc.Int(4)
    model = lc.calibrate(subject.make().eval(), [subject.batch(16)], weights=few, activations=few)
    rounded = lc.finalize(model, example_inputs=subject.batch(2))
    lc.export_onnx(model, tmp_path / "model.onnx", subject.batch(2))
    runtime = session(tmp_path / "model.onnx", precise=True)
    batch = subject.batch(256)
    written = [torch.from_numpy(o) for o in runtime.run(None, feeds_of(runtime.get_inputs(), as_arguments(batch)))]

    def differing(network: nn.Module) -> int:
        pairs = zip(outputs(network, batch), written, strict=True)
        return sum(int((ours - theirs).abs().gt(1e-5 * theirs.abs().max()).sum()) for ours, theirs in pairs)

    assert differing(rounded) == 0
    assert differing(lc.finalize(model)) > 0


def test_biases_that_are_added_at_two_input_scales_stay() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.twice, self.last = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.twice(torch.relu(self.twice(x)))))

    torch.manual_seed(0)
    model = Twice().eval()
    inputs = torch.randn(8, 4)
    rounded = lc.finalize(lc.calibrate(model, [inputs]), example_inputs=inputs)
    assert torch.equal(rounded.twice.bias, model.twice.bias)
    assert not torch.equal(rounded.last.bias, model.last.bias)


def test_example_inputs_change_nothing_in_an_unquantized_model() -> None:
    model = nn.Linear(2, 2)
    assert_same(lc.finalize(model, example_inputs=torch.zeros(1, 2)).state_dict(), model.state_dict())


def test_finalize_of_a_submodule() -> None:
    model = nn.ModuleDict({"net": nn.Linear(2, 1), "other": nn.Linear(2, 1)})
    assert isinstance(lc.finalize(model, module="net"), nn.Linear)
    with pytest.raises(ValueError, match="the model has no module 'nett'"):
        lc.finalize(model, module="nett")


def test_float_copy_is_the_model_before_quantization() -> None:
    torch.manual_seed(0)
    model = SUBJECT.make().eval()
    reference = copy.deepcopy(model)
    quantized = lc.calibrate(model, [SUBJECT.batch(4)])
    plain = lc.float_copy(quantized)
    assert is_quantized(quantized)
    assert not is_quantized(plain)
    assert_same(plain.state_dict(), reference.state_dict())
    assert_same(outputs(plain, SUBJECT.batch(2)), outputs(reference, SUBJECT.batch(2)))
    assert not [m for m in plain.modules() if m._forward_pre_hooks or m._forward_hooks or m._load_state_dict_pre_hooks]
