from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.distillation.batch_formats import Annotations
from lightning_compress.distillation.feature_hooks import FeatureHooks
from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.logit_averaging import average_by_confidence, average_uniformly
from lightning_compress.distillation.objective import Objective
from lightning_compress.distillation.student_capture import StudentStep

IMAGES = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 1])
HINT = lc.FitNet((("0", "0"), ("1", "2")))


def net(width: int, classes: int = 3, seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        body = nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()
        return nn.Sequential(*body, nn.Flatten(), nn.Linear(9 * width, classes))


def compare(
    objective: Objective,
    student: nn.Module,
    teachers: Sequence[FrozenNetwork],
    labels: Tensor | None = LABELS,
    keys: Tensor | None = None,
    **kwargs: Any,
) -> dict[str, Tensor]:
    features = FeatureHooks(student, objective.layers[0], owner="student")
    with features.record():
        output = student(IMAGES)
        annotations = Annotations() if labels is None else Annotations((labels,))
        batch = (IMAGES, labels)
        return objective(StudentStep("", batch, (IMAGES,), kwargs, output, annotations, features, keys), teachers)


def frozen(*networks: nn.Module, layers: Sequence[str] = (), **options: Any) -> list[FrozenNetwork]:
    return [
        FrozenNetwork(network, name="t", layers=() if i else layers, **options) for i, network in enumerate(networks)
    ]


def test_logits_are_compared_with_the_teachers() -> None:
    student, teacher = net(4), net(8, seed=1)
    objective = Objective({"kd": lc.KD(), "dist": lc.DIST(weight=5.0)}, average_uniformly)
    found = compare(objective, student, frozen(teacher))
    said = teacher.eval()(IMAGES).detach()
    for name, loss in (("kd", lc.KD()), ("dist", lc.DIST())):  # not weighted
        torch.testing.assert_close(found[name], loss(student(IMAGES), said, LABELS))
    assert list(found) == ["kd", "dist"]
    assert not list(objective.parameters())


def test_gradients_reach_the_student_alone() -> None:
    student, teachers = net(4), frozen(net(8, seed=1), layers=("0", "2"))
    objective = Objective({"kd": lc.KD(), "hint": HINT}, average_uniformly)
    values = compare(objective, student, teachers)
    for value in values.values():
        assert value.ndim == 0
        student.zero_grad()
        value.backward(retain_graph=True)
        assert student[0].weight.grad.any()
    assert all(p.grad is None for p in teachers[0].network.parameters())
    assert all(p.grad is not None for p in objective.parameters())


def test_labels_and_several_teachers() -> None:
    student, networks = net(4), [net(8, seed=1), net(2, seed=2), net(2, seed=3)]
    found = compare(Objective({"dkd": lc.DKD()}, average_by_confidence), student, frozen(*networks))
    said = average_by_confidence([network.eval()(IMAGES).detach() for network in networks], LABELS)
    torch.testing.assert_close(found["dkd"], lc.DKD()(student(IMAGES), said, LABELS))
    with pytest.raises(ValueError, match="which the batches do not have"):
        compare(Objective({"kd": lc.KD()}, average_by_confidence), student, frozen(*networks), None)


def test_features_are_the_mean_over_pairs() -> None:
    student, teacher = net(4), net(4, seed=1)
    teachers = frozen(teacher, net(9, classes=7, seed=2), layers=("0", "2"))
    found = compare(Objective({"hint": HINT}, average_uniformly), student, teachers)
    teacher.eval()
    pairs = [(student[0](IMAGES), teacher[0](IMAGES)), (student[:2](IMAGES), teacher[:3](IMAGES))]
    torch.testing.assert_close(found["hint"], torch.stack([HINT(s, t, None) for s, t in pairs]).mean())
    assert "0" not in teachers[0].features


def test_layers_once_each() -> None:
    losses = {"a": lc.FitNet((("1", "x"), ("0", "x"))), "kd": lc.KD(), "b": lc.RKD((("0", "y"), ("1", "x")))}
    assert Objective(losses, average_uniformly).layers == (["1", "0"], ["x", "y"])
    assert Objective({}, average_uniformly).layers == ([], [])


def test_adapters_are_made_once_and_again_from_their_shapes() -> None:
    student, teachers = net(4), frozen(net(8, seed=1), layers=("0", "2"))
    objective = Objective({"hint_0": HINT, "b": lc.RKD((("0", "0"),))}, average_uniformly)
    assert not objective.shapes
    first = compare(objective, student, teachers)
    adapters = list(objective.adapters)
    assert adapters == ["hint_0_0", "hint_0_1", "b_0"]
    assert objective.shapes["hint_0_1"] == [[4, 4, 3, 3], [4, 8, 3, 3]]
    assert torch.equal(compare(objective, student, teachers)["hint_0"], first["hint_0"])
    other = Objective({"hint_0": HINT, "b": lc.RKD((("0", "0"),))}, average_uniformly)
    other.build_adapters(objective.shapes)
    assert other.shapes == objective.shapes
    other.load_state_dict(objective.state_dict())
    assert torch.equal(compare(other, student, teachers)["hint_0"], first["hint_0"])
    again = copy.deepcopy(objective)
    again.build_adapters(objective.shapes)  # keeps what is there
    assert torch.equal(compare(again, student, teachers)["hint_0"], first["hint_0"])


def test_dicts_of_logits_and_keyword_arguments() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net(4, seed=3)

        def forward(self, x: Tensor, scale: float = 1.0) -> dict[str, Tensor]:
            return {"logits": self.body(x) * scale}

    student = Named()
    found = compare(Objective({"kd": lc.KD()}, average_uniformly), student, frozen(Named()), scale=2.0)
    said = 2 * net(4, seed=3).eval()(IMAGES).detach()
    torch.testing.assert_close(found["kd"], lc.KD()(net(4, seed=3)(IMAGES), said, None))


def test_losses_of_features_ask_for_no_logits() -> None:
    class Nothing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> None:
            self.body(x)

    loss = lc.FitNet((("body", "body"),))
    found = compare(Objective({"a": loss}, average_uniformly), Nothing(), frozen(Nothing(), layers=("body",)))
    assert found["a"] > 0
    with pytest.raises(ValueError, match="The student must return logits"):
        compare(Objective({"kd": lc.KD()}, average_uniformly), Nothing(), frozen(Nothing()))
    with pytest.raises(ValueError, match="The teacher must return logits"):
        compare(Objective({"kd": lc.KD()}, average_uniformly), net(4), frozen(Nothing()))


def test_other_classes() -> None:
    words = r"logits of shape \(4, 3\) and the teacher of shape \(4, 7\): logit losses need the same classes"
    with pytest.raises(ValueError, match=words):
        compare(Objective({"kd": lc.KD()}, average_uniformly), net(4), frozen(net(4, classes=7)))
    loss = lc.FitNet((("0", "0"),))
    compare(Objective({"a": loss}, average_uniformly), net(4), frozen(net(4, classes=7), layers=("0",)))


def test_what_fails_leaves_no_features() -> None:
    teachers = frozen(net(4, classes=7), layers=("0",))
    losses = {"kd": lc.KD(), "a": lc.FitNet((("0", "0"),))}
    with pytest.raises(ValueError, match="the same classes"):
        compare(Objective(losses, average_uniformly), net(4), teachers)
    assert "0" not in teachers[0].features


def test_keys_reach_the_caches(tmp_path: Path) -> None:
    student, network = net(4), net(8, seed=1)
    for _ in range(2):
        values = compare(
            Objective({"kd": lc.KD()}, average_uniformly),
            student,
            frozen(network, cache=tmp_path),
            keys=torch.arange(4),
        )
        torch.testing.assert_close(
            values, compare(Objective({"kd": lc.KD()}, average_uniformly), student, frozen(network))
        )
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ({"a.b": lc.KD()}, "losses: 'a.b' must be a name without dots"),
        ({"": lc.KD()}, "losses: '' must be a name without dots"),
        ({"kd": lc.KD}, r"losses: 'kd' must be a loss such as lc.KD\(\), not ABCMeta"),
        ({"kd": 0.5}, "not float"),
    ],
)
def test_what_is_refused(losses: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Objective(losses, average_uniformly)
