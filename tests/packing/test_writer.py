"""What is written, and what is said of it."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import lightning_compress as lc
from lightning_compress.packing import writer
from tests.packing.hostile import index_of
from tests.packing.samples import bits, state


def make() -> nn.Sequential:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 64, 3), nn.BatchNorm2d(64), nn.Flatten(), nn.Linear(64, 100), nn.LayerNorm(100))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
        weight = net[0].weight
        weight.copy_(torch.tensor([-0.3, 0.0, 0.0, 0.0, 0.3])[torch.randint(5, weight.shape)])
        net[3].weight[net[3].weight.abs() < 0.15] = 0.0
    return net


def sizes(items: tuple[Any, ...]) -> dict[str, int]:
    return {item.name: item.num_bytes for item in items}


def test_items_are_the_file_to_the_byte(tmp_path: Path) -> None:
    file = lc.save_packed(state(), tmp_path / "file")
    items = sizes(file.items)
    assert sum(items.values()) == file.num_bytes == (tmp_path / "file").stat().st_size
    assert items["header"] == index_of((tmp_path / "file").read_bytes()).begin
    assert sum(tensor.num_bytes for tensor in file.tensors) == file.num_bytes - items["header"]


def test_items_are_of_their_kinds(tmp_path: Path) -> None:
    net = make()
    net[3].register_buffer("quant_weight_scale", torch.rand(100))
    file = lc.save_packed(net, tmp_path / "file")
    by_tensor, items = sizes(file.tensors), sizes(file.items)
    assert items["norms"] == sum(n for name, n in by_tensor.items() if name.startswith(("1.", "4.")))
    assert items["scales"] == by_tensor["3.quant_weight_scale"]
    assert items["other dense"] == by_tensor["0.bias"] + by_tensor["3.bias"]
    assert items["codebooks"] == 8
    assert items["masks"] > 0
    assert items["values"] > 0


def test_stages(tmp_path: Path) -> None:
    weight = torch.tensor([0.5, -0.5, 0.25])[torch.randint(3, (100, 100), generator=torch.Generator().manual_seed(0))]
    weight[:, 10:] = 0.0
    file = lc.save_packed({"w": weight, "b": torch.tensor([1.0])}, tmp_path / "file")
    header = sizes(file.items)["header"]
    stages = sizes(file.stages)
    assert list(stages) == ["dense", "+ prune", "+ cluster", "+ entropy coding"]
    assert stages["dense"] == 4 * 10_001
    masks = stages["+ prune"] - header - 4 - 4 * 1000
    assert 0 < masks <= 1250  # a bit for each element, or less for gaps
    assert stages["+ cluster"] == header + 4 + masks + 1000 * 2 // 8 + 3 * 4
    assert stages["+ entropy coding"] == file.num_bytes < stages["+ cluster"] < stages["+ prune"] < stages["dense"]


def test_the_table(tmp_path: Path) -> None:
    file = lc.save_packed(make(), tmp_path / "file")
    text = str(file)
    assert f"file: {file.num_bytes:,} bytes" in text
    for word in ("0.weight", "other dense", "+ entropy coding", "bits per element"):
        assert word in text
    assert "\x1b" not in text


def test_the_entropy_of_each_tensor(tmp_path: Path) -> None:
    q = torch.tensor([[1.0, -2.0, 1.0, -2.0], [3.0, 3.0, 3.0, 3.0]])
    tensors = {
        "quarters": torch.tensor([0.0, 0.5, -0.5, 7.0]).repeat(16),
        "constant": torch.ones(5),
        "dense": torch.arange(64.0),
        "empty": torch.zeros(0),
        # The integers count, not their products with the scales of the channels.
        "q.weight": q * torch.tensor([[0.1], [0.3]]),
        "q.quant_weight_scale": torch.tensor([0.1, 0.3]),
    }
    file = lc.save_packed(tensors, tmp_path / "file")
    found = {tensor.name: tensor.entropy for tensor in file.tensors}
    assert found["quarters"] == pytest.approx(2.0)
    assert str(found["constant"]) == "0.0"
    assert found["dense"] is found["empty"] is None
    assert found["q.weight"] == pytest.approx(1.5)
    assert [line.split("│")[5].strip() for line in str(file).splitlines() if "quarters" in line] == ["2.00"]


def test_bits_per_element(tmp_path: Path) -> None:
    file = lc.save_packed(
        {"four": torch.randn(3), "eight": torch.rand(5).double(), "none": torch.ones(0)}, tmp_path / "f"
    )
    assert [tensor.bits for tensor in file.tensors] == [32.0, 64.0, 0.0]


def test_json(tmp_path: Path) -> None:
    file = lc.save_packed(make(), tmp_path / "file")
    data = json.loads(file.to_json())
    assert data["num_bytes"] == file.num_bytes == sum(item["num_bytes"] for item in data["items"])
    assert data["path"] == str(tmp_path / "file")
    assert data["tensors"][0]["name"] == "0.weight"


def test_it_is_a_safetensors_file(tmp_path: Path) -> None:
    path = lc.save_packed(make(), tmp_path / "file").path
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "lightning_compress.packed"
        assert file.metadata()["version"] == "3"
        assert file.get_tensor("packed").dtype == torch.uint8


def test_the_same_bytes_each_time(tmp_path: Path) -> None:
    first, second = (lc.save_packed(state(), tmp_path / name).path.read_bytes() for name in ("a", "b"))
    assert first == second


def test_the_model_is_left_bit_identical(tmp_path: Path) -> None:
    net = make().train()
    before, random = {n: bits(t) for n, t in net.state_dict().items()}, torch.get_rng_state()
    lc.save_packed(net, tmp_path / "file", half=("codebooks", "norms"))
    assert {n: bits(t) for n, t in net.state_dict().items()} == before
    assert torch.equal(torch.get_rng_state(), random)
    assert net.training


def test_shared_tensors_are_written_once(tmp_path: Path) -> None:
    net = nn.ModuleDict({"embedding": nn.Embedding(500, 40), "head": nn.Linear(40, 500, bias=False)})
    alone = lc.save_packed({"embedding.weight": net["embedding"].weight}, tmp_path / "file").num_bytes
    net["head"].weight = net["embedding"].weight
    file = lc.save_packed(net, tmp_path / "file")
    assert file.num_bytes < alone + 100
    assert sizes(file.stages)["dense"] == 4 * 500 * 40
    single = lc.save_packed({"embedding.weight": net["embedding"].weight}, tmp_path / "single")
    without_header = [
        [stage.num_bytes - sizes(f.items)["header"] for stage in f.stages if stage.name != "dense"]
        for f in (file, single)
    ]
    assert without_header[0] == without_header[1]
    assert (file.tensors[1].encoding, file.tensors[1].num_bytes) == ("same as embedding.weight", 0)
    loaded = lc.load_packed(file.path)
    assert loaded["embedding.weight"] is loaded["head.weight"]
    assert bits(lc.load_packed(file.path, into=net)["head"].weight) == bits(loaded["head.weight"])


def test_views_of_one_memory_are_not_the_same(tmp_path: Path) -> None:
    base = torch.randn(6, 6)
    loaded = lc.load_packed(lc.save_packed({"a": base, "b": base.T, "c": base[:3]}, tmp_path / "file").path)
    assert [bits(loaded[name]) for name in "abc"] == [bits(base), bits(base.T), bits(base[:3])]


def test_halves(tmp_path: Path) -> None:
    net = make()
    exact = lc.save_packed(net, tmp_path / "exact")
    file = lc.save_packed(net, tmp_path / "half", half=("codebooks", "norms"))
    assert sizes(file.items)["norms"] < 0.6 * sizes(exact.items)["norms"]
    assert sizes(file.items)["codebooks"] == sizes(exact.items)["codebooks"] // 2
    loaded, plain = lc.load_packed(file.path), net.state_dict()
    rounded = {
        "0.weight",
        *(name for name in plain if name.startswith(("1.", "4.")) and plain[name].is_floating_point()),
    }
    for name, tensor in loaded.items():
        expected = plain[name].half().float() if name in rounded else plain[name]
        assert bits(tensor) == bits(expected), name


@pytest.mark.parametrize(("half", "which"), [("codebooks", {"0.weight"}), (("norms",), {"1.weight", "4.bias"})])
def test_one_of_the_halves(tmp_path: Path, half: Any, which: set[str]) -> None:
    net = make()
    loaded, plain = lc.load_packed(lc.save_packed(net, tmp_path / "f", half=half).path), net.state_dict()
    changed = {name for name in plain if bits(plain[name]) != bits(loaded[name])}
    assert which <= changed
    assert not changed & {"0.bias", "3.weight", "3.bias"}
    assert changed <= {"0.weight"} or "0.weight" not in changed


def test_biases_in_half(tmp_path: Path) -> None:
    net = nn.ModuleDict({"fc": nn.Linear(3, 5), "lstm": nn.LSTM(3, 4), "attention": nn.MultiheadAttention(4, 2)})
    nn.init.normal_(net["attention"].in_proj_bias)
    nn.init.normal_(net["attention"].out_proj.bias)
    file = lc.save_packed(net, tmp_path / "half", half=("biases",))
    loaded, plain = lc.load_packed(file.path), net.state_dict()
    biases = {"fc.bias", "lstm.bias_ih_l0", "lstm.bias_hh_l0", "attention.in_proj_bias", "attention.out_proj.bias"}
    assert {name for name in plain if bits(plain[name]) != bits(loaded[name])} == biases
    assert all(bits(loaded[name]) == bits(plain[name].half().float()) for name in biases)


def test_values_beyond_float16_stay(tmp_path: Path) -> None:
    net = nn.BatchNorm1d(4)
    net.running_var[:] = torch.tensor([1e6, 1.0, 2.0, 0.1])
    loaded = lc.load_packed(lc.save_packed(net, tmp_path / "file", half=("norms",)).path)
    assert bits(loaded["running_var"]) == bits(net.running_var)


@pytest.mark.parametrize("half", ["weights", ("norms", "codebook")])
def test_another_half(tmp_path: Path, half: Any) -> None:
    with pytest.raises(
        ValueError, match=r"save_packed\(half=.* is not supported; use 'codebooks', 'norms' or 'biases'\."
    ):
        lc.save_packed(make(), tmp_path / "file", half=half)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, header: bytes, payload: io.BufferedIOBase) -> None:
        path.write_bytes(header)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer, "write_container", full)
    target = tmp_path / "file"
    target.write_text("old")
    with pytest.raises(OSError, match="No space left"):
        lc.save_packed(make(), target)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"a": 1}


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (Extra(1, 1), "'_extra_state' is a dict; only tensors can be packed"),
        (nn.Linear(1, 1, device="meta"), "'weight' .* cannot be packed; only dense tensors in memory"),
        ({"s": torch.eye(3).to_sparse()}, "'s' .* cannot be packed; only dense tensors in memory"),
    ],
)
def test_what_cannot_be_packed(model: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=sentence):
        lc.save_packed(model, tmp_path / "file")
    assert not list(tmp_path.iterdir())
