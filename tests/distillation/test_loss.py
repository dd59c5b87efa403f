"""What all losses share: that they are frozen, checked, copied, compiled, and read from the command line."""

from __future__ import annotations

import copy
import dataclasses
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import Tensor

import lightning_compress as lc
from lightning_compress.distillation.loss import FeatureLoss, LogitLoss

LAYERS = (("a", "b"), ("c.0", "d"))
LOGITS: list[LogitLoss] = [lc.KD(), lc.DKD(standardize=True), lc.DIST(temperature=2.0)]
FEATURES: list[FeatureLoss] = [
    loss(LAYERS) for loss in (lc.FitNet, lc.AttentionTransfer, lc.SimilarityPreserving, lc.RKD, lc.CRD)
]
LABELS = torch.tensor([0, 2, 1, 0])


def name(loss: LogitLoss | FeatureLoss) -> str:
    return type(loss).__name__


@pytest.mark.parametrize("loss", [*LOGITS, *FEATURES], ids=name)
def test_specifications(loss: LogitLoss | FeatureLoss) -> None:
    assert loss.weight == 1.0
    assert copy.deepcopy(loss) == pickle.loads(pickle.dumps(loss)) == loss
    assert hash(loss) == hash(copy.deepcopy(loss))
    with pytest.raises(dataclasses.FrozenInstanceError):
        loss.weight = 2.0
    ramp = lc.Ramp(0.0, 2.0)
    assert dataclasses.replace(loss, weight=ramp).weight is ramp
    assert dataclasses.replace(loss, weight=0).weight == 0


def test_bases_are_abstract() -> None:
    for base in (LogitLoss, FeatureLoss):
        with pytest.raises(TypeError):
            base()


def test_defaults() -> None:
    assert lc.KD() == lc.KD(4.0, False, weight=1.0)
    assert lc.DKD() == lc.DKD(1.0, 8.0, 4.0, False)
    assert lc.DIST() == lc.DIST(1.0, 1.0, 1.0, False)
    assert lc.RKD(LAYERS) == lc.RKD(LAYERS, 25.0, 50.0)
    assert lc.CRD(LAYERS) == lc.CRD(LAYERS, 0.07, 128)
    with pytest.raises(TypeError):
        lc.KD(4.0, False, 1.0)


WRONG: list[tuple[Callable[[float], object], str]] = [
    *((lambda x, of=of: of(weight=x), "weight") for of in (lc.KD, lc.DKD, lc.DIST)),
    *(
        (lambda x, of=of: of(LAYERS, weight=x), "weight")
        for of in (lc.FitNet, lc.AttentionTransfer, lc.SimilarityPreserving, lc.RKD, lc.CRD)
    ),
    *((lambda x, of=of: of(temperature=x), "temperature") for of in (lc.KD, lc.DKD, lc.DIST)),
    (lambda x: lc.CRD(LAYERS, temperature=x), "temperature"),
    (lambda x: lc.DKD(alpha=x), "alpha"),
    (lambda x: lc.DKD(beta=x), "beta"),
    (lambda x: lc.DIST(beta=x), "beta"),
    (lambda x: lc.DIST(gamma=x), "gamma"),
    (lambda x: lc.RKD(LAYERS, distance=x), "distance"),
    (lambda x: lc.RKD(LAYERS, angle=x), "angle"),
]


@pytest.mark.parametrize("value", [-1.0, math.inf, math.nan, "4", True], ids=str)
def test_numbers_are_checked(value: float) -> None:
    for make, field in WRONG:
        with pytest.raises(ValueError, match=rf"^\w+\({field}={value!r}\) must be [^.]*\.$"):
            make(value)


def test_zero_is_a_factor_but_no_divisor() -> None:
    for make, field in WRONG:
        if field == "temperature":
            with pytest.raises(ValueError, match="temperature=0"):
                make(0)
        else:
            make(0)
    for dim in (0, -3):
        with pytest.raises(ValueError, match=f"dim={dim}"):
            lc.CRD(LAYERS, dim=dim)


def test_lists_become_tuples() -> None:
    loss = lc.FitNet([["a", "b"], ("c.0", "d")])
    assert loss.layers == LAYERS
    assert hash(loss) == hash(lc.FitNet(LAYERS))


@pytest.mark.parametrize(
    "layers", [(), "ab", ("a", "b"), ("ab",), (("a",),), (("a", "b", "c"),), (("a", 1),), (("a", ""),), None], ids=str
)
def test_layers_are_checked(layers: object) -> None:
    with pytest.raises(ValueError, match=r"^RKD\(layers=.*write layers=\(\('layer3', 'layer4'\),\)\.$"):
        lc.RKD(layers)


def test_a_pair_is_written_once() -> None:
    with pytest.raises(ValueError, match="contains a pair twice"):
        lc.RKD((("a", "b"), ("c", "b"), ("a", "b")))
    assert len(lc.RKD((("a", "b"), ("c", "b"), ("a", "c"))).layers) == 3


def reparsed(kind: type, default: object, *arguments: str) -> object:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--loss", type=kind, default=default)
    config = parser.parse_args(arguments)
    loss = parser.instantiate(config).loss
    assert parser.instantiate(parser.parse_string(parser.dump(config))).loss == loss
    return loss


@pytest.mark.parametrize("loss", [*LOGITS, lc.KD(weight=lc.Ramp(1.0, 0.0, lc.Schedule("1ep", "2ep")))], ids=name)
def test_defaults_of_a_command_line(loss: LogitLoss) -> None:
    assert reparsed(LogitLoss, loss) == loss


def test_command_line() -> None:
    assert reparsed(LogitLoss, lc.KD(), "--loss=DKD", "--loss.beta=2") == lc.DKD(beta=2.0)
    ramped = reparsed(LogitLoss, None, "--loss=lightning_compress.KD", "--loss.weight.first=0", "--loss.weight.last=1")
    assert ramped == lc.KD(weight=lc.Ramp(0.0, 1.0))
    spelled = '{"class_path": "RKD", "init_args": {"layers": [["a", "b"]], "weight": 0.5}}'
    assert reparsed(FeatureLoss, None, f"--loss={spelled}") == lc.RKD((("a", "b"),), weight=0.5)
    both = reparsed(list[LogitLoss | FeatureLoss], None, f'--loss=[{{"class_path": "KD"}}, {spelled}]')
    assert both == [lc.KD(), lc.RKD((("a", "b"),), weight=0.5)]


def all_logit_losses(student: Tensor, teacher: Tensor) -> list[Tensor]:
    return [loss(student, teacher, LABELS) for loss in LOGITS]


def test_logit_losses_compile() -> None:
    torch._dynamo.reset()
    results = []
    teacher = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    for function in (all_logit_losses, torch.compile(all_logit_losses, backend="aot_eager", fullgraph=True)):
        student = torch.randn(4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        values = function(student, teacher)
        sum(values).backward()
        results.append((*(value.detach() for value in values), student.grad))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("loss", FEATURES, ids=name)
def test_feature_losses_and_their_adapters_compile(loss: FeatureLoss) -> None:
    torch._dynamo.reset()
    student, teacher = (torch.randn(4, c, 4, 4, generator=torch.Generator().manual_seed(c)) for c in (3, 5))
    adapter = loss.adapter(student.shape, teacher.shape)
    results = []
    student.requires_grad_()
    for compiled in (False, True):
        adapt = torch.compile(adapter, backend="aot_eager", fullgraph=True) if compiled else adapter
        compare = torch.compile(loss.__call__, backend="aot_eager", fullgraph=True) if compiled else loss
        student.grad = None
        value = compare(*adapt(student, teacher), LABELS)
        value.backward()
        results.append((value.detach(), student.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
