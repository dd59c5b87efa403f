"""Back into a plain model, or not at all."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import lightning_compress as lc
import lightning_compress.models.networks  # registers resnet56_cifar with timm
from tests.packing.samples import bits


def make(num_classes: int = 3) -> nn.Sequential:
    net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, num_classes))
    net(torch.randn(4, 2, 3, 3))
    with torch.no_grad():
        net[0].weight[:5] = 0.0
    return net


def all_bits(model: nn.Module) -> dict[str, object]:
    return {name: bits(tensor) for name, tensor in model.state_dict().items()}


@pytest.fixture
def file(tmp_path: Path) -> tuple[nn.Module, Path]:
    net = make()
    return net, lc.save_packed(net, tmp_path / "file").path


def test_into_a_model(file: tuple[nn.Module, Path]) -> None:
    net, path = file
    other = make().train()
    parameters = list(map(id, other.parameters()))
    assert lc.load_packed(path, into=other) is other
    assert all_bits(other) == all_bits(net)
    assert list(map(id, other.parameters())) == parameters
    assert all(parameter.requires_grad for parameter in other.parameters())
    assert other.training


def test_a_state_dict_loads_strictly_into_the_plain_class(file: tuple[nn.Module, Path]) -> None:
    net, path = file
    other = make()
    other.load_state_dict(lc.load_packed(path), strict=True)
    assert all_bits(other) == all_bits(net)
    assert list(lc.load_packed(path)) == list(net.state_dict())


def test_where_nothing_but_the_reader_can_be_imported(file: tuple[nn.Module, Path], tmp_path: Path) -> None:
    net, path = file
    torch.save(net.state_dict(), tmp_path / "expected.pt")
    code = f"""
import sys
for name in ("lightning", "pytorch_lightning", "timm", "rich", "wandb", "jsonargparse", "torchvision", "sklearn"):
    sys.modules[name] = None  # whoever imports it gets an ImportError
import torch
from torch import nn
import lightning_compress as lc
net = nn.Sequential(nn.Conv2d(2, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))
lc.load_packed({str(path)!r}, into=net)
expected = torch.load({str(tmp_path / "expected.pt")!r}, weights_only=True)
assert all(torch.equal(tensor, expected[name]) for name, tensor in net.state_dict().items())
lc.save_packed(net, {str(path)!r})
loaded = [name for name in sys.modules if name.startswith("lightning_compress.")]
names = ("packing", "atomic_files", "masked_norms", "module_copies", "arguments")
allowed = tuple("lightning_compress." + name for name in names)
assert all(name.startswith(allowed) for name in loaded), loaded
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr


def test_a_sparse_and_clustered_network_in_a_clean_process(tmp_path: Path) -> None:
    net = timm.create_model("resnet56_cifar", num_classes=10)
    for parameter in net.parameters():
        if parameter.ndim > 1:  # 90 % zeros, 16 values
            size = parameter.detach().abs()
            kept = size > size.flatten().kthvalue(int(0.9 * size.numel())).values
            parameter.data = ((parameter.detach() / size.max() * 8).round() / 8).where(kept, 0.0)
    lc.save_packed(net, tmp_path / "net.packed")
    code = f"""
import hashlib, sys
sys.modules.update({{name: None for name in ("lightning", "timm", "rich", "wandb", "torchvision", "sklearn")}})
import torch
import lightning_compress as lc
for name, tensor in lc.load_packed({str(tmp_path / "net.packed")!r}).items():
    print(name, tensor.dtype, tuple(tensor.shape), hashlib.sha256(tensor.numpy().tobytes()).hexdigest())
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600)
    expected = [
        f"{name} {t.dtype} {tuple(t.shape)} {hashlib.sha256(t.numpy().tobytes()).hexdigest()}"
        for name, t in net.state_dict().items()
    ]
    assert result.stdout.splitlines() == expected, result.stderr


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu"), "meta"])
def test_device(file: tuple[nn.Module, Path], device: torch.device | str) -> None:
    state = lc.load_packed(file[1], device=device)
    assert {tensor.device for tensor in state.values()} == {torch.device(device)}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpu(file: tuple[nn.Module, Path]) -> None:
    net, path = file
    assert {tensor.device.type for tensor in lc.load_packed(path, device="cuda").values()} == {"cuda"}
    assert all_bits(lc.load_packed(path, into=make().cuda())) == all_bits(net)
    assert lc.save_packed(net.cuda(), path).num_bytes == path.stat().st_size
    assert all_bits(lc.load_packed(path, into=make())) == all_bits(net)


@pytest.mark.parametrize(
    ("model", "sentence"),
    [
        (make(4), r"'4.weight' has shape \(3, 8\) in the file and \(4, 8\) in the model"),
        (
            nn.Sequential(make()),
            r"names of the model are those of the file with the prefix '0\.'; load into the submodule '0' instead",
        ),
        (make()[0], "missing: bias, weight; unexpected: 0.bias, 0.weight, 1.bias and 6 more"),
        (make().append(nn.Linear(1, 1)), "missing: 5.bias, 5.weight; unexpected: none"),
        (make().to("meta"), "on the meta device"),
    ],
)
def test_another_model_stays_as_it_is(file: tuple[nn.Module, Path], model: nn.Module, sentence: str) -> None:
    before = {} if next(model.parameters()).is_meta else all_bits(model)
    with pytest.raises(ValueError, match=sentence) as caught:
        lc.load_packed(file[1], into=model)
    assert str(caught.value).startswith(f"{file[1]}: ")
    assert not before or all_bits(model) == before


def test_the_part_of_a_whole_that_was_saved(tmp_path: Path) -> None:
    net = make()
    path = lc.save_packed(nn.ModuleDict({"net": net}), tmp_path / "file").path
    with pytest.raises(
        ValueError, match=r"names of the file are those of the model with the prefix 'net\.'; save the submodule 'net'"
    ):
        lc.load_packed(path, into=make())


def test_damage_in_the_last_tensor_leaves_the_first(file: tuple[nn.Module, Path]) -> None:
    _, path = file
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    model = make()
    before = all_bits(model)
    with pytest.raises(ValueError, match="a tensor is damaged: the checksum does not match"):
        lc.load_packed(path, into=model)
    assert all_bits(model) == before


def test_compiled_models_have_plain_names(tmp_path: Path) -> None:
    net = make()
    net[0] = torch.compile(net[0])
    path = lc.save_packed(torch.compile(net), tmp_path / "file").path
    assert all_bits(lc.load_packed(path, into=make())) == all_bits(lc.load_packed(path, into=make().eval()))
    compiled = torch.compile(make())
    lc.load_packed(path, into=compiled)
    assert torch.equal(compiled._orig_mod[4].weight, net[4].weight)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        lc.load_packed(tmp_path / "nothing")


def test_progress(file: tuple[nn.Module, Path], capsys: pytest.CaptureFixture[str]) -> None:
    lc.load_packed(file[1], progress=True)
    lc.save_packed(file[0], file[1], progress=True)
    assert "unpacking" in (shown := capsys.readouterr().out)
    assert "100%" in shown
