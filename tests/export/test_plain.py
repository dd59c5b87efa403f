"""Plain copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import lightning_compress as lc
from lightning_compress.quantization.simulation import is_quantized, quantizers_of
from tests.cases import assert_same
from tests.export.nets import SUBJECTS, outputs

SUBJECT = SUBJECTS["residual"]


def test_finalize_copies_in_eval_mode_with_nothing_to_train() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    plain = lc.finalize(model)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert not plain.training
    assert not any(p.requires_grad for p in plain.parameters())
    plain[0].weight.data.zero_()
    assert model[0].weight.abs().sum() > 0


def test_finalize_keeps_quantizers_and_numbers() -> None:
    model = SUBJECT.quantized()
    plain = lc.finalize(model)
    assert is_quantized(plain)
    weights = {attached.name for attached in quantizers_of(model) if attached.quantizer.is_weight}
    assert weights
    for name, tensor in model.state_dict().items():
        assert torch.equal(plain.state_dict()[name], tensor) != (name in weights), name
    assert_same(outputs(plain, SUBJECT.batch(2)), [t.detach() for t in outputs(model, SUBJECT.batch(2))])
    assert_same(outputs(pickle.loads(pickle.dumps(plain)), SUBJECT.batch(2)), outputs(plain, SUBJECT.batch(2)))


def test_finalize_writes_integers_times_their_scales() -> None:
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


def test_finalize_of_a_part() -> None:
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
