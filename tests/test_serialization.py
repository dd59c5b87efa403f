from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import lightning_compress as lc
from lightning_compress.serialization import check_class_paths, from_plain, to_plain

RAMP = lc.Ramp(0.0, 2.0, lc.Schedule(begin="1ep", end="3ep", every=2, curve="cosine"))
PAIRS = (("conv1", "layer1"), ("conv2", "layer2"))
SPECIFICATIONS = [
    lc.Teacher("resnet18", checkpoint="a.pt", num_classes=3, model_kwargs={"in_chans": 1, "depths": [1, 2]}),
    lc.Teacher("a.ckpt", precision="bf16", compile=True, normalization=lc.Normalization((0.5,), (0.25,))),
    lc.Teacher("vit", input_size=(32, 48)),
    lc.Normalization((0.1, 0.2, 0.3), (1, 2, 3)),
    lc.KD(temperature=2.0, standardize=True, weight=RAMP),
    lc.DKD(alpha=2.0, beta=1.0, weight=RAMP),
    lc.DIST(weight=3.0),
    lc.FitNet(PAIRS, weight=RAMP),
    lc.AttentionTransfer(PAIRS, weight=RAMP),
    lc.SimilarityPreserving(PAIRS, weight=0.0),
    lc.RKD(PAIRS, weight=RAMP),
    lc.CRD(PAIRS, weight=RAMP),
    RAMP,
    lc.Schedule(begin=3, end=1.0, curve="one_shot"),
    lc.QATSchedule(observe=2, fake_quantize=4),
    lc.Int(4, observer=lc.Learned()),
    lc.Int(8, symmetric=False, granularity=3, observer=lc.Percentile(99.0)),
    lc.Targets(),
    lc.Targets(include=("conv*",), exclude=("fc",), types=(nn.Linear, nn.Conv2d), module="model"),
    lc.NM(2, 4),
    lc.Block((4, 4)),
    lc.Channels(),
    lc.ERK(),
    lc.Uniform(),
    lc.LAMP(),
    lc.SynFlow(rounds=3),
    lc.RigL(),
    lc.RewindWeights(1),
]
each = pytest.mark.parametrize("specification", SPECIFICATIONS, ids=lambda s: type(s).__name__)


def public_specifications() -> set[type]:
    values = [getattr(lc, name) for name in lc.__all__]
    return {value for value in values if isinstance(value, type) and is_dataclass(value)}


@each
def test_round_trip_through_a_file_loaded_with_weights_only(specification: Any, tmp_path: Path) -> None:
    torch.save({"x": [to_plain(specification)]}, tmp_path / "a.pt")
    found = from_plain(torch.load(tmp_path / "a.pt", weights_only=True))["x"][0]
    assert type(found) is type(specification)
    assert found == specification
    assert to_plain(found) == to_plain(specification)


@pytest.mark.parametrize("kind", sorted(public_specifications(), key=lambda kind: kind.__name__))
def test_round_trip_of_every_public_specification(kind: type, tmp_path: Path) -> None:
    given = {"Teacher": {"model": "a"}, "Ramp": {"first": 0.0, "last": 1.0}, "NM": {"n": 2, "m": 4}}
    given["Normalization"] = {"mean": (0.5,), "std": (0.5,)}
    given["Block"] = {"shape": (2, 2)}
    arguments = given.get(kind.__name__, {})
    if "layers" in {field.name for field in fields(kind)} and issubclass(kind, type(SPECIFICATIONS[7]).__mro__[1]):
        arguments = {"layers": PAIRS}
    try:
        specification = kind(**arguments)
    except TypeError:
        pytest.skip("a result, not a specification")
    torch.save(to_plain(specification), tmp_path / "a.pt")
    assert from_plain(torch.load(tmp_path / "a.pt", weights_only=True)) == specification


def test_looks_like_a_configuration() -> None:
    assert to_plain({"kd": lc.KD(weight=0.5)}) == {
        "kd": {
            "class_path": "lightning_compress.distillation.logits.KD",
            "init_args": {"weight": 0.5, "temperature": 4.0, "standardize": False},
        }
    }
    assert to_plain((1, "a", None, (2.5, [True]))) == [1, "a", None, [2.5, [True]]]
    assert to_plain(nn.Linear) == {"type_path": "torch.nn.modules.linear.Linear"}


def test_plain_data_and_instances_are_unchanged() -> None:
    values = {"a": [1, {"class_path": 2}], "b": None, "c": lc.KD(), 4: (1, 2)}
    assert from_plain(values) == values
    assert from_plain(values)["c"] is values["c"]


def test_numbers_of_numpy_and_paths_become_plain(tmp_path: Path) -> None:
    mean = torch.tensor([0.5, 0.25]).numpy()
    teacher = lc.Teacher(Path("a"), checkpoint=tmp_path / "b.pt", normalization=lc.Normalization(mean, mean))
    torch.save(to_plain(teacher), tmp_path / "a.pt")
    found = from_plain(torch.load(tmp_path / "a.pt", weights_only=True))
    assert found == teacher
    assert (found.model, found.checkpoint) == ("a", str(tmp_path / "b.pt"))


@dataclass(frozen=True)
class Renamed:
    number: int = 3


@pytest.mark.parametrize(
    ("plain", "words"),
    [
        ({"class_path": "torch.nn.Linear", "init_args": {}}, "'torch.nn.Linear' is not a specification: it must name"),
        ({"class_path": "os.system", "init_args": {"command": "true"}}, "class_path='os.system' is not imported, bec"),
        ({"class_path": "torch.nn.nowhere.KD", "init_args": {}}, "cannot be imported: No module named"),
        ({"class_path": "torch.save", "init_args": {}}, "class_path='torch.save' is not a class"),
        ({"class_path": "torchvision.KD", "init_args": {}}, "'torchvision.KD' is not imported, because a checkpoint"),
        ({"class_path": "lightning_compress.cli.__main__.main", "init_args": {}}, "__main__.main' is not imported"),
        ({"class_path": "lightning_compress.packing.reader.Path", "init_args": {}}, "Path' is not imported, because a"),
        ({"class_path": 3, "init_args": {}}, "class_path=3 is not imported"),
        ({"class_path": ["torch"], "init_args": {}}, "is not imported"),
        ({"class_path": "lightning_compress.distillation.ramp.Ramp", "init_args": []}, "init_args do not fit"),
        ({"class_path": "lightning_compress.schedules.Schedule", "init_args": 3}, "init_args do not fit"),
        (
            {"class_path": "lightning_compress.serialization.KD", "init_args": {}},
            "cannot be imported: module .* has no attri",
        ),
        ({"class_path": "KD", "init_args": {}}, "class_path='KD' is not imported"),
        ({"class_path": "lightning_compress.distillation.logits.KD", "init_args": {"heat": 3}}, "argument 'heat'"),
        ({"type_path": "torch.nn.functional.relu"}, "type_path='torch.nn.functional.relu' is not a class"),
        ({"type_path": "torch.nn.Nothing"}, "type_path='torch.nn.Nothing' cannot be imported"),
    ],
)
def test_unsupported_data(plain: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        from_plain({"losses": [plain]})
    assert "\n" not in str(error.value)


@pytest.fixture
def module_that_must_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module on the path that leaves a mark when it is imported, as code of an attacker would."""
    mark = tmp_path / "mark"
    (tmp_path / "payload.py").write_text(
        f"from dataclasses import dataclass\nopen({str(mark)!r}, 'w').close()\n@dataclass\nclass Loss: x: int = 0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield mark
    sys.modules.pop("payload", None)


def test_no_other_module_is_imported(module_that_must_not_run: Path) -> None:
    for plain in ({"class_path": "payload.Loss", "init_args": {}}, {"type_path": "payload.Loss"}):
        with pytest.raises(ValueError, match=r"is not imported, .*call torch\.serialization\.add_safe_globals"):
            from_plain({"losses": [plain]})
        with pytest.raises(ValueError, match="is not imported"):
            check_class_paths({"losses": [plain]})
    assert not module_that_must_not_run.exists()


def test_a_class_that_the_user_has_allowed() -> None:
    specification = Renamed(5)
    plain = to_plain({"a": specification, "b": Renamed})
    with pytest.raises(ValueError, match="is not imported"):
        from_plain(plain)
    with torch.serialization.safe_globals([Renamed]):
        assert from_plain(plain) == {"a": specification, "b": Renamed}
        check_class_paths(plain)
    with torch.serialization.safe_globals([(Renamed, "elsewhere.Named")]):
        assert from_plain({"type_path": "elsewhere.Named"}) is Renamed


def test_all_paths_are_checked_but_not_imported() -> None:
    check_class_paths([{"class_path": "torch.nowhere.Nothing", "init_args": {"a": [1, None]}}, "os.system", 3])
    with pytest.raises(ValueError, match=r"class_path='os\.system' is not imported"):
        check_class_paths({"a": {"class_path": "torch.optim.SGD", "init_args": [{"class_path": "os.system"}]}})


def test_an_instance_of_a_dataclass_is_not_a_class() -> None:
    import tests.test_serialization as here

    here.INSTANCE = replace(Renamed())
    with pytest.raises(ValueError, match="is not imported"):
        from_plain({"class_path": "tests.test_serialization.INSTANCE", "init_args": {}})
    with pytest.raises(ValueError, match="is not a class"):
        from_plain({"class_path": "lightning_compress.packing.encodings.ENCODINGS", "init_args": {}})
