from __future__ import annotations

import copy
import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import lightning_compress as lc
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


def test_files_of_version_1_stay_readable(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_text(
        '{"version": 1, "tensors": {"up.weight": {"shape": [3, 4, 2, 2], "kept": {"1": [0, 3]}}}, '
        '"attributes": {"up.out_channels": [4, 2]}, "transposed": ["up.weight"]}'
    )
    log = lc.RemovalLog.load(tmp_path / "log.json")
    cut = TensorCut((3, 4, 2, 2), {1: (0, 3)})
    assert log == lc.RemovalLog({"up.weight": cut}, {"up.out_channels": (4, 2)}, ("up.weight",))
    assert (cut.final_shape, log.layers) == ((3, 2, 2, 2), {"up": (0, 3)})
    log.save(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads((tmp_path / "log.json").read_text())


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 9}', '{"version": 1, "tensors": {"a": 3}}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.json").write_text(text)
    with pytest.raises(ValueError, match=r"is not a removal log of version 1: write one with RemovalLog\.save"):
        lc.RemovalLog.load(tmp_path / "log.json")


def test_positions_that_do_not_exist_are_refused(tmp_path: Path) -> None:
    _, log = shrunk()
    log.save(tmp_path / "log.json")
    data = json.loads((tmp_path / "log.json").read_text())
    data["tensors"]["fc.weight"]["kept"]["1"][0] = 8
    (tmp_path / "log.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match="is not a removal log"):
        lc.RemovalLog.load(tmp_path / "log.json")


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
