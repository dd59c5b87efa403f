from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from lightning_compress.targets import Target, Targets, matches


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.encoder = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
        self.encoder_head = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.embedding = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10)


def names(targets: Targets, model: nn.Module) -> list[str]:
    return [target.name for target in targets.select(model)]


def test_weights_of_layers_but_no_biases_norms_or_embeddings() -> None:
    assert names(Targets(), Net()) == [
        "stem.weight",
        "encoder.0.weight",
        "encoder.2.weight",
        "encoder_head.weight",
        "head.weight",
    ]


def test_a_target_says_where_it_is() -> None:
    net = Net()
    target = Targets(include=("encoder.2",)).select(net)[0]
    assert target == Target("encoder.2.weight", "encoder.2", net.encoder[2], net.encoder[2].weight)
    assert target.parameter is net.encoder[2].weight


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"include": ("encoder",)}, ["encoder.0", "encoder.2"]),
        ({"include": ("encoder*",)}, ["encoder.0", "encoder.2", "encoder_head"]),
        ({"include": ("*head",)}, ["encoder_head", "head"]),
        ({"include": ("head", "stem")}, ["stem", "head"]),
        ({"include": ("encoder.[02]",)}, ["encoder.0", "encoder.2"]),
        ({"exclude": ("encoder",)}, ["stem", "encoder_head", "head"]),
        ({"include": ("encoder",), "exclude": ("*.0",)}, ["encoder.2"]),
        ({"exclude": ("*head", "stem")}, ["encoder.0", "encoder.2"]),
        ({"types": (nn.Linear,)}, ["encoder_head", "head"]),
        ({"types": (nn.Embedding, nn.Linear)}, ["encoder_head", "embedding", "head"]),
        ({"module": "encoder"}, ["encoder.0", "encoder.2"]),
        ({"module": "encoder", "include": ("encoder.0",)}, ["encoder.0"]),
    ],
)
def test_selection(fields: dict[str, Any], expected: list[str]) -> None:
    assert [target.layer for target in Targets(**fields).select(Net())] == expected


@pytest.mark.parametrize(
    ("glob", "layer", "match"),
    [
        ("*", "a.b", True),
        ("a", "a.b.c", True),
        ("a.b", "a.b.c", True),
        ("a.*", "a.b.c", True),
        ("a", "ab", False),
        ("b", "a.b", False),
        ("*.b", "a.b", True),
        ("A", "a", False),
    ],
)
def test_matches(glob: str, layer: str, match: bool) -> None:
    assert matches(glob, layer) is match


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_every_glob_that_matches_nothing_is_named(field: str) -> None:
    with pytest.raises(ValueError, match=r"'decoder' matches no layer; the layers are 'encoder\.0'.*'stem'"):
        Targets(**{field: ("stem", "decoder")}).select(Net())


def test_globs_of_biases_norms_and_name_prefixes_match_nothing() -> None:
    for glob in ("stem.weight", "encoder.1", "enc", "norm"):
        with pytest.raises(ValueError, match=repr(glob)):
            Targets(include=(glob,)).select(Net())


def test_long_lists_of_layers_are_cut_short() -> None:
    model = nn.Sequential(*[nn.Linear(1, 1) for _ in range(12)])
    with pytest.raises(ValueError, match="and 4 more"):
        Targets(include=("x",)).select(model)


def test_all_excluded() -> None:
    with pytest.raises(ValueError, match="every layer is excluded"):
        Targets(exclude=("*",)).select(Net())


def test_a_model_without_layers() -> None:
    with pytest.raises(ValueError, match="matches no layer; the layers are none"):
        Targets().select(nn.ReLU())


def test_a_missing_module() -> None:
    with pytest.raises(ValueError, match="no module 'generator'"):
        Targets(module="generator").select(Net())
    with pytest.raises(ValueError, match="'head' matches no layer inside 'encoder'"):
        Targets(module="encoder", include=("head",)).select(Net())


@pytest.mark.parametrize("field", ["include", "exclude"])
def test_a_string_is_not_a_sequence(field: str) -> None:
    with pytest.raises(ValueError, match=rf"write {field}=\('head',\)"):
        Targets(**{field: "head"})


def test_lists_become_tuples() -> None:
    assert Targets(include=["a"]) == Targets(include=("a",))
    assert hash(Targets(include=["a"])) == hash(Targets(include=("a",)))


def test_frozen_layers_are_left_out() -> None:
    net = Net()
    net.encoder.requires_grad_(False)
    assert names(Targets(), net) == ["stem.weight", "encoder_head.weight", "head.weight"]
    with pytest.raises(ValueError, match=r"selected layers are frozen \('encoder.0', 'encoder.2'\): set"):
        Targets(include=("encoder",)).select(net)


def test_a_single_layer_is_a_model() -> None:
    target = Targets().select(nn.Linear(2, 2))[0]
    assert (target.name, target.layer) == ("weight", "")


def test_tied_weights_are_selected_once() -> None:
    net = Net()
    net.head.weight = net.encoder_head.weight
    assert names(Targets(), net).count("encoder_head.weight") == 1
    assert "head.weight" not in names(Targets(), net)


def test_a_module_used_twice_is_selected_once() -> None:
    layer = nn.Linear(2, 2)
    assert names(Targets(), nn.Sequential(layer, layer)) == ["0.weight"]


def test_subclasses_and_all_kinds_of_convolutions() -> None:
    class MyConv(nn.Conv2d):
        pass

    model = nn.ModuleList(
        [
            nn.Conv1d(1, 1, 1),
            nn.Conv3d(1, 1, 1),
            nn.ConvTranspose1d(1, 1, 1),
            nn.ConvTranspose3d(1, 1, 1),
            MyConv(1, 1, 1),
        ]
    )
    assert len(Targets().select(model)) == 5


def test_attention_gives_its_input_and_output_projections() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2)})
    assert names(Targets(), model) == ["attention.in_proj_weight", "attention.out_proj.weight"]
    apart = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2, kdim=3, vdim=5)})
    assert names(Targets(include=("attention",)), apart) == [
        "attention.q_proj_weight",
        "attention.k_proj_weight",
        "attention.v_proj_weight",
        "attention.out_proj.weight",
    ]


def test_recurrent_layers_by_type() -> None:
    model = nn.ModuleDict({"rnn": nn.LSTM(2, 3)})
    assert names(Targets(types=(nn.LSTM,)), model) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_parametrized_layer_is_an_error_that_names_it(wrap: Any) -> None:
    net = Net()
    wrap(net.head)
    with pytest.raises(ValueError, match=r"'head' is parametrized.*remove_parametrizations.*or exclude it"):
        Targets().select(net)
    assert "head.weight" not in names(Targets(exclude=("head",)), net)


def test_a_lazy_layer_is_an_error_that_names_it() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(3))
    with pytest.raises(ValueError, match=r"'1' is lazy.*run the model once"):
        Targets().select(model)
    assert names(Targets(exclude=("1",)), model) == ["0.weight"]
    model(torch.ones(1, 2))
    assert names(Targets(), model) == ["0.weight", "1.weight"]


def test_a_mask_of_torch_is_an_error_that_names_it() -> None:
    net = Net()
    prune.l1_unstructured(net.head, "weight", 0.5)
    with pytest.raises(ValueError, match=r"'head' has a mask.*prune\.remove"):
        Targets().select(net)
    prune.remove(net.head, "weight")
    assert "head.weight" in names(Targets(), net)


def test_a_compiled_module_is_named_without_its_wrapper() -> None:
    model = nn.ModuleDict({"net": torch.compile(Net())})
    target = Targets(include=("net.head",)).select(model)[0]
    assert target.layer == "net.head"
    assert target.name == "net._orig_mod.head.weight"
    assert model.get_parameter(target.name) is target.parameter
    assert len(Targets(module="net").select(model)) == 5


def test_selection_leaves_the_model_alone() -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    Targets().select(net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_selection_is_frozen_equal_and_hashable() -> None:
    assert Targets() == Targets()
    assert len({Targets(), Targets(exclude=("head",))}) == 2
    with pytest.raises(AttributeError):
        Targets().include = ()
