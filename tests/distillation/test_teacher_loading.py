from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.image_conversion import Conversion
from lightning_compress.distillation.teacher_loading import as_teachers, build_teacher, load_module

HALVES = lc.Normalization((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = lc.Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GRAY = lc.Normalization((0.1,), (0.3,))
SMALL = {"in_chans": 1, "img_size": 8}


def weights_of(tmp_path: Path, name: str, seed: int = 1, **arguments: Any) -> tuple[str, nn.Module]:
    """A file with the weights of a network, and the network."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = timm.create_model(name, **arguments)
    path = tmp_path / f"{name}.safetensors"
    safetensors.torch.save_file(network.state_dict(), path)
    return str(path), network.eval()


def build(teacher: lc.Teacher, **options: Any) -> FrozenNetwork:
    defaults = {"num_classes": None, "layers": (), "student_normalization": None, "student": None, "cache": None}
    return build_teacher(teacher, **{**defaults, **options})


def same_weights(a: nn.Module, b: nn.Module) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in a.state_dict().items())


def trained(tmp_path: Path, model: str | nn.Module = "conv4", **options: Any) -> tuple[str, lc.ClassificationModule]:
    """A Lightning checkpoint of a ClassificationModule, and the module."""
    arguments = {"model_kwargs": SMALL} if isinstance(model, str) else {}
    module = lc.ClassificationModule(model, 3, **arguments, **options)
    trainer = Trainer(accelerator="cpu", logger=False, max_epochs=0, enable_checkpointing=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    return str(tmp_path / "a.ckpt"), module


# Networks.


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_name_with_weights(tmp_path: Path, suffix: str) -> None:
    path, network = weights_of(tmp_path, "test_efficientnet", num_classes=5)
    if suffix == "pt":
        path = str(tmp_path / "a.pt")
        torch.save(network.state_dict(), path)
    teacher = build(lc.Teacher("test_efficientnet", checkpoint=path), num_classes=5)
    assert same_weights(teacher.network, network)
    assert teacher.identity["name"] == "test_efficientnet"
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher.forward((images,), {}), network(images))


def test_classes_and_arguments(tmp_path: Path) -> None:
    path, network = weights_of(tmp_path, "conv4", num_classes=7, **SMALL)
    teacher = lc.Teacher("conv4", checkpoint=path, num_classes=7, model_kwargs=SMALL)
    assert same_weights(build(teacher, num_classes=5).network, network)
    assert teacher.model_kwargs == SMALL
    with pytest.raises(ValueError, match=r"belongs to another network: .*in the file and .* in the model") as error:
        build(lc.Teacher("conv4", checkpoint=path, model_kwargs=SMALL), num_classes=5)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_a_module(tmp_path: Path) -> None:
    path, module = trained(tmp_path)
    teacher = build(lc.Teacher(path), num_classes=9)
    assert same_weights(teacher.network, module.model)
    assert teacher.identity["name"] == path
    assert same_weights(load_module(path, "teacher"), module)


def test_a_network_of_ones_own_and_what_is_passed_on(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    teacher = build(lc.Teacher(network, precision="bf16"), layers=("1",), cache=tmp_path)
    assert teacher.network is not network
    assert teacher.network[1].weight.dtype == torch.bfloat16
    assert teacher.identity["name"] == "Sequential"
    images = torch.randn(2, 3, 2, 2)
    teacher.forward((images,), {}, torch.arange(2))
    assert list(tmp_path.iterdir())
    with teacher.features.record():
        teacher.forward((images,), {})
        assert "1" in teacher.features
    assert build(lc.Teacher(network, precision="fp16")).network[1].weight.dtype == torch.float16
    assert build(lc.Teacher(network)).network[1].weight.dtype == torch.float32
    assert build(lc.Teacher(network)).network._compiled_call_impl is None
    assert build(lc.Teacher(network, compile=True)).network._compiled_call_impl is not None


# Weights that are fetched, which no test does.


def unreachable(name: str, **arguments: Any) -> nn.Module:
    assert arguments["pretrained"] is True
    raise OSError("We couldn't connect to 'https://huggingface.co'\nCheck your connection.")


def test_pretrained_weights_that_are_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", unreachable)
    words = r"weights of teacher 'test_vit' cannot be loaded \(We couldn't .*co'\): give Teacher\(checkpoint=...\)"
    with pytest.raises(ValueError, match=words) as error:
        build(lc.Teacher("test_vit"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("own", "expected"), [(None, None), (4, 4)])
def test_a_pretrained_network_keeps_its_classes(
    monkeypatch: pytest.MonkeyPatch, own: int | None, expected: int | None
) -> None:
    seen: dict[str, Any] = {}

    def fetch(name: str, **arguments: Any) -> nn.Module:
        seen.update(arguments)
        return nn.Linear(2, 2)

    monkeypatch.setattr(timm, "create_model", fetch)
    build(lc.Teacher("test_vit", num_classes=own, model_kwargs={"depth": 3}), num_classes=10)
    assert seen == {"pretrained": True, "depth": 3, **({"num_classes": 4} if expected else {})}


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (lc.Teacher("resnet18x"), "teacher='resnet18x' is not a timm network; did you mean 'resnet18"),
        (lc.Teacher("qqqqqqqq"), "timm.list_models.. lists the names"),
        (lc.Teacher("test_vit", checkpoint="nowhere.pt"), "checkpoint='nowhere.pt' does not exist: give the path"),
        (lc.Teacher("conv4"), "conv4.*weights"),
        (
            lc.Teacher("conv4", checkpoint="a.pt", model_kwargs={"width": 3}),
            r"model_kwargs=\{'width': 3\} are not supported",
        ),
        (
            lc.Teacher("nowhere.ckpt"),
            r"teacher='nowhere.ckpt' is not a checkpoint of a .*: load the network yourself and",
        ),
    ],
    ids=lambda value: value.model if isinstance(value, lc.Teacher) else "",
)
def test_what_cannot_be_built(teacher: lc.Teacher, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        build(teacher, num_classes=3)
    assert "\n" not in str(error.value)


def test_checkpoints_of_something_else(tmp_path: Path) -> None:
    own, _ = trained(tmp_path, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    torch.save({"state_dict": {"a": torch.zeros(1)}}, tmp_path / "b.ckpt")
    (tmp_path / "c.ckpt").write_text("no checkpoint")
    for path in (own, str(tmp_path / "b.ckpt"), str(tmp_path / "c.ckpt")):
        with pytest.raises(
            ValueError, match=r"teacher='.*ckpt' is not a checkpoint of a ClassificationModule with"
        ) as e:
            build(lc.Teacher(path))
        assert "\n" not in str(e.value)
        assert len(str(e.value)) < 600


# Images.


def conversion(teacher: lc.Teacher, **options: Any) -> Conversion | None:
    return build(teacher, **options)._conversion


def timm_net(name: str, **options: Any) -> nn.Module:
    return timm.create_model(name, num_classes=3, **options)


def test_between_two_networks_of_timm(tmp_path: Path) -> None:
    path, network = weights_of(tmp_path, "test_efficientnet", num_classes=3)
    teacher = build(lc.Teacher("test_efficientnet", checkpoint=path, num_classes=3), student=timm_net("test_resnet"))
    assert teacher._conversion == Conversion(HALVES, IMAGENET)
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

    def normalized(normalization: lc.Normalization) -> Tensor:
        mean, std = torch.tensor(normalization.mean), torch.tensor(normalization.std)
        return (images - mean[:, None, None]) / std[:, None, None]

    output = teacher.forward((normalized(HALVES),), {})
    torch.testing.assert_close(output, network(normalized(IMAGENET)), rtol=1e-3, atol=1e-4)


def test_what_is_alike_or_unknown_is_left_alone() -> None:
    net = timm_net("test_efficientnet")
    assert conversion(lc.Teacher(net), student=timm_net("test_efficientnet")) is None
    assert conversion(lc.Teacher(net)) is None
    assert conversion(lc.Teacher(net), student=nn.Linear(2, 2)) is None
    assert conversion(lc.Teacher(nn.Linear(2, 2)), student_normalization=HALVES) is None
    assert conversion(lc.Teacher(net), student_normalization=IMAGENET) is None


def test_what_the_user_says_comes_first() -> None:
    net, student = timm_net("test_efficientnet"), timm_net("test_resnet")
    other = lc.Normalization((0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert conversion(lc.Teacher(net), student_normalization=other, student=student) == Conversion(other, IMAGENET)
    assert conversion(lc.Teacher(net, normalization=other), student=student) == Conversion(HALVES, other)
    unit = lc.Normalization((0.0,), (1.0,))
    teacher = lc.Teacher(nn.Linear(2, 2), normalization=GRAY)
    assert conversion(teacher, student_normalization=unit) == Conversion(unit, GRAY)
    assert conversion(lc.Teacher(net, normalization=HALVES), student=student) is None


def test_a_normalization_needs_to_know_from_what() -> None:
    words = r"Teacher\(normalization=...\) needs the normalization of the student's images: set the"
    with pytest.raises(ValueError, match=words):
        conversion(lc.Teacher(timm_net("test_resnet"), normalization=GRAY), student=nn.Linear(2, 2))


def resized(network: nn.Module, size: int) -> nn.Module:
    network.pretrained_cfg = {**network.pretrained_cfg, "input_size": (3, size, size)}
    return network


def test_sizes() -> None:
    net = timm_net("test_resnet")
    assert conversion(lc.Teacher(net), student=resized(timm_net("test_resnet"), 96)) == Conversion(
        HALVES, HALVES, (160, 160)
    )
    assert conversion(lc.Teacher(resized(timm_net("test_resnet"), 96)), student=timm_net("test_efficientnet")) == (
        Conversion(IMAGENET, HALVES, (96, 96))
    )
    assert conversion(lc.Teacher(net)) is None  # of a student of one's own nobody knows the size
    assert conversion(lc.Teacher(net, input_size=(8, 12))) == Conversion(None, HALVES, (8, 12))
    assert conversion(lc.Teacher(net, input_size=(8, 12)), student=resized(timm_net("test_resnet"), 96)).size == (8, 12)
    assert conversion(lc.Teacher(nn.Linear(2, 2), input_size=(8, 12))) == Conversion(None, None, (8, 12))


# Several.


def test_forms_of_teachers(tmp_path: Path) -> None:
    network, teacher = nn.Linear(2, 2), lc.Teacher("a")
    assert as_teachers(None) == as_teachers([]) == []
    assert as_teachers("a") == as_teachers(["a"]) == as_teachers({"model": "a"}) == as_teachers((teacher,)) == [teacher]
    assert as_teachers(tmp_path / "a.ckpt") == [lc.Teacher(str(tmp_path / "a.ckpt"))]
    found = as_teachers([network, "b", teacher, {"model": "c", "precision": "bf16"}])
    assert [each.model for each in found] == [network, "b", "a", "c"]
    assert found[2] is teacher
    for wrong in (3, [[teacher]], lc.KD()):
        with pytest.raises(
            ValueError, match=r"is not supported: give a timm name, a network, an lc.Teacher, or a list of them"
        ):
            as_teachers(wrong)
