from __future__ import annotations

import copy
import json
import re
import resource
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import Attention
from torch import nn

import lightning_compress as lc
from lightning_compress.channels.log_format import format_log
from lightning_compress.channels.tensor_cut import TensorCut
from tests.channels.nets import Residual, images, trained
from tests.channels.test_shrink import half_zero


def shrunk() -> tuple[nn.Module, lc.RemovalLog]:
    return lc.shrink(half_zero(trained(Residual)), images())


def test_replayed_on_a_fresh_network_it_takes_the_weights() -> None:
    small, log = shrunk()
    fresh = Residual()
    log.replay_(fresh)
    fresh.load_state_dict(small.state_dict())
    torch.testing.assert_close(fresh.eval()(images()), small(images()), rtol=0, atol=0)
    assert fresh.blocks[1].norm1.num_features == 5


def test_replayed_twice_it_does_nothing_more() -> None:
    _, log = shrunk()
    fresh = Residual()
    log.replay_(fresh)
    state = copy.deepcopy(fresh.state_dict())
    log.replay_(fresh)
    assert all(torch.equal(value, state[name]) for name, value in fresh.state_dict().items())


def test_another_network_is_named_and_left_as_it_is() -> None:
    _, log = shrunk()
    other = Residual()
    other.blocks[1].conv2 = nn.Conv2d(12, 8, 3, padding=1, bias=False)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(
        ValueError,
        match=r"belongs to another model: 'blocks\.1\.conv2\.weight' has shape \(8, 12, 3, 3\) instead of \(8, 10",
    ):
        log.replay_(other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_prefix_is_recognized() -> None:
    _, log = shrunk()
    with pytest.raises(ValueError, match=r"the model has no tensor '.*' but 'net\..*': pass its submodule 'net'"):
        log.replay_(nn.ModuleDict({"net": Residual()}))
    _, longer = lc.shrink(nn.Sequential(OrderedDict(net=half_zero(trained(Residual)))), images())
    with pytest.raises(ValueError, match="pass the module that contains it as 'net'"):
        longer.replay_(Residual())


def test_layers_lists_output_channels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 6, 2), nn.ReLU(), nn.Conv2d(6, 4, 1)).eval()
    with torch.no_grad():
        for layer, zero in ((net[0].weight, [0, 1]), (net[0].bias, [0, 1]), (net[1].bias, [3, 5])):
            layer[zero] = 0
        net[1].weight[:, [3, 5]] = 0
    _, log = lc.shrink(net, images())
    assert log.layers == {"0": (2, 3, 4, 5), "1": (0, 1, 2, 4)}
    assert log.then(lc.RemovalLog()).layers == log.layers


def test_saved_and_loaded(tmp_path: Path) -> None:
    _, log = shrunk()
    log.save(tmp_path / "log.json")
    assert lc.RemovalLog.load(tmp_path / "log.json") == log


VERSION_1 = (
    '{"version": 1, "tensors": {"up.weight": {"shape": [3, 4, 2, 2], "kept": {"1": [0, 3]}}}, '
    '"attributes": {"up.out_channels": [4, 2]}, "transposed": ["up.weight"]}'
)


def read(folder: Path, text: str) -> lc.RemovalLog:
    (folder / "log.json").write_text(text)
    return lc.RemovalLog.load(folder / "log.json")


def changed(folder: Path, change: Callable[[dict[str, Any]], object], *, version: int = 1) -> lc.RemovalLog:
    """The log of a shrunk network, read after a change of its file."""
    shrunk()[1].save(folder / "log.json")
    data = json.loads((folder / "log.json").read_text())
    if version == 1:
        data["version"] = 1
        del data["crc32"]
    change(data)
    return read(folder, json.dumps(data))


def test_files_of_version_1_stay_readable(tmp_path: Path) -> None:
    log = read(tmp_path, VERSION_1)
    cut = TensorCut((3, 4, 2, 2), {1: (0, 3)})
    assert log == lc.RemovalLog({"up.weight": cut}, {"up.out_channels": (4, 2)}, ("up.weight",))
    assert (cut.final_shape, log.layers) == ((3, 2, 2, 2), {"up": (0, 3)})
    log.save(tmp_path / "again.json")
    assert lc.RemovalLog.load(tmp_path / "again.json") == log
    assert read(tmp_path, VERSION_1.replace(', "transposed": ["up.weight"]', "")).transposed == ()
    assert changed(tmp_path, lambda data: None) == shrunk()[1]


def test_the_format_of_a_file(tmp_path: Path) -> None:
    read(tmp_path, VERSION_1).save(tmp_path / "log.json")
    expected = {**json.loads(VERSION_1), "version": 2, "crc32": 171420196}
    assert json.loads((tmp_path / "log.json").read_text()) == expected


def test_blocks_need_version_3(tmp_path: Path) -> None:
    _, log = shrunk()
    replace(log, blocks=("blocks.1",)).save(tmp_path / "log.json")
    data = json.loads((tmp_path / "log.json").read_text())
    assert (data["version"], data["blocks"]) == (3, ["blocks.1"])
    assert lc.RemovalLog.load(tmp_path / "log.json") == replace(log, blocks=("blocks.1",))
    data["blocks"] = ["blocks.0"]
    with pytest.raises(ValueError, match="its checksum does not match its contents"):
        read(tmp_path, json.dumps(data))


@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ("blocks", "a list is missing"),
        ([3], "the blocks must be names of modules, each once"),
        ([""], "the blocks must be names of modules, each once"),
        (["a..b"], "the blocks must be names of modules, each once"),
        (["a", "a"], "the blocks must be names of modules, each once"),
        (["a.b", "a-b", "a"], "a block is inside another"),
    ],
)
def test_blocks_beyond_the_schema(tmp_path: Path, blocks: Any, words: str) -> None:
    _, log = shrunk()
    text = format_log(log.cuts, log.attributes, log.transposed, blocks)
    with pytest.raises(ValueError, match=words):
        read(tmp_path, text)


def test_a_formatter_may_rewrite_a_file(tmp_path: Path) -> None:
    _, log = shrunk()
    log.save(tmp_path / "log.json")
    pretty = json.dumps(json.loads((tmp_path / "log.json").read_text()), indent=4, sort_keys=True)
    assert read(tmp_path, pretty) == log


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "\xff", '{"version": 9}', '{"version": 1, "tensors": {"a": 3}}', "[" * 100_000]
)
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a removal log \(.+\): write one with RemovalLog\.save\.$"):
        read(tmp_path, text)


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data["tensors"].popitem(),
        lambda data: data["attributes"].popitem(),
        lambda data: data["tensors"]["fc.weight"]["kept"]["1"].pop(),
        lambda data: data.update(version=1),
        lambda data: data.update(crc32=data["crc32"] ^ 1),
    ],
)
def test_a_changed_file_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with pytest.raises(ValueError, match=r"\(its (checksum does not match its contents|version or keys are unknown)\)"):
        changed(tmp_path, change, version=2)


def first_cut(data: dict[str, Any]) -> dict[str, Any]:
    return data["tensors"]["fc.weight"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data.update(more=1), "its version or keys are unknown"),
        (lambda data: data.update(version=True), "its version or keys are unknown"),
        (lambda data: data.update(tensors=[]), "a section is not a mapping"),
        (lambda data: data.update(transposed=["nothing"]), "a transposed weight is not among its tensors"),
        (lambda data: first_cut(data).update(more=1), "'fc.weight' must have a shape and kept indices"),
        (lambda data: first_cut(data).update(shape=[3, 8.0]), "the shape of 'fc.weight' is invalid"),
        (lambda data: first_cut(data).update(shape=[-3, 8]), "the shape of 'fc.weight' is invalid"),
        (lambda data: first_cut(data).update(shape=[2**60, 8]), "the shape of 'fc.weight' is invalid"),
        (lambda data: first_cut(data)["kept"].update({"-1": [0]}), "of a dimension that it does not have"),
        (lambda data: first_cut(data)["kept"].update({"1": []}), "indices of 'fc.weight' must lie below 8"),
        (lambda data: first_cut(data)["kept"].update({"1": [0, 8]}), "indices of 'fc.weight' must lie below 8"),
        (lambda data: first_cut(data)["kept"].update({"1": [-1, 7]}), "indices of 'fc.weight' must lie below 8"),
        (lambda data: first_cut(data)["kept"].update({"1": [0, True]}), "indices of 'fc.weight' must lie below 8"),
        (lambda data: first_cut(data)["kept"].update({"1": [0, 2, 2, 3]}), "indices of 'fc.weight' must increase"),
        (lambda data: first_cut(data)["kept"].update({"1": [0, 9, 3]}), "indices of 'fc.weight' must increase"),
        (lambda data: data["attributes"].update({"fc.__class__": [2, 1]}), "does not change the attribute 'fc.__c"),
        (lambda data: data["attributes"].update({"fc.groups": [2, None]}), "'fc.groups' must be a positive integer"),
        (lambda data: data["attributes"].update({"fc.groups": [1, 2]}), "'fc.groups' must be a positive integer"),
        (lambda data: data["attributes"].update({"fc.groups": [2, 0]}), "'fc.groups' must be a positive integer"),
        (lambda data: data["attributes"].update({"fc.groups": [2, 1, 1]}), "'fc.groups' must be a positive integer"),
    ],
)
def test_a_file_beyond_the_schema_is_refused(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        changed(tmp_path, change)


def test_a_key_that_occurs_twice(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a key occurs twice"):
        read(tmp_path, VERSION_1.replace('"transposed"', '"attributes"'))


def test_a_small_file_with_a_large_tensor_takes_no_memory(tmp_path: Path) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    log = read(tmp_path, VERSION_1.replace("[3, 4, 2, 2]", "[3, 300000000, 2, 2]"))
    assert log.cuts["up.weight"].final_shape == (3, 2, 2, 2)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"fc.out_channels": (2, 1)}, "the model has no attribute 'fc.out_channels'"),
        ({"gone.out_channels": (2, 1)}, "the model has no attribute 'gone.out_channels'"),
        ({"fc.forward": (2, 1)}, "'fc.forward' is no integer attribute"),
        ({"fc.training": (1, 0)}, "'fc.training' is no integer attribute"),
        ({"blocks.0.norm1.eps": (2, 1)}, "'blocks.0.norm1.eps' is no integer attribute"),
        ({"fc.out_features": (5, 2)}, "'fc.out_features' is 4 instead of 5"),
        ({"fc.in_features": (8, 5)}, "'fc.in_features' becomes 5 although its tensor has 4 channels then"),
    ],
)
def test_attributes_that_do_not_fit_leave_the_model_as_it_is(attributes: Any, words: str) -> None:
    _, log = shrunk()
    fresh = Residual()
    shapes = {name: value.shape for name, value in fresh.state_dict().items()}
    with pytest.raises(ValueError, match=rf"belongs to another model: {words}"):
        replace(log, attributes={**log.attributes, **attributes}).replay_(fresh)
    missing = {path: pair for path, pair in log.attributes.items() if path != "fc.in_features"}
    with pytest.raises(ValueError, match=r"'fc.in_features' becomes 8 although its tensor has 4"):
        replace(log, attributes=missing).replay_(fresh)
    assert {name: value.shape for name, value in fresh.state_dict().items()} == shapes


def test_heads_are_removed_from_a_fresh_attention() -> None:
    attention = Attention(16, num_heads=4)
    attention.qkv.weight.data.view(3, 4, 4, 16)[:, :2] = 0
    small, log = lc.shrink(attention, torch.randn(2, 3, 16))
    assert small.num_heads == 2
    fresh = Attention(16, num_heads=4)
    log.replay_(fresh)
    assert fresh.num_heads == 2
    with pytest.raises(ValueError, match="'num_heads' is 2 instead of 4"):
        log.replay_(Attention(16, num_heads=2))


subsets = st.sets(st.integers(0, 5), min_size=1).map(lambda s: tuple(sorted(s)))


@given(subsets, subsets, st.data())
@settings(deadline=None)
def test_two_cuts_are_one(rows: tuple[int, ...], columns: tuple[int, ...], data: st.DataObject) -> None:
    tensor = torch.arange(36).view(6, 6)
    first = TensorCut((6, 6), {0: rows})
    again = data.draw(st.sets(st.integers(0, len(rows) - 1), min_size=1)) if len(rows) > 1 else {0}
    second = TensorCut((len(rows), 6), {0: tuple(sorted(again)), 1: columns})
    assert torch.equal(first.compose(second).select(tensor), second.select(first.select(tensor)))
    assert first.compose(second).final_shape == tuple(second.select(first.select(tensor)).shape)
