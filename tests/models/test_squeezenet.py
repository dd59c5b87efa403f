"""SqueezeNet: timm's interface, torchvision's numbers, and the rest of this package on it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from lightning_compress.models import networks
from lightning_compress.models.networks.squeezenet import from_torchvision

VERSIONS = ("squeezenet1_0", "squeezenet1_1")
every_version = pytest.mark.parametrize("name", VERSIONS)


def images(size: int = 48, chans: int = 3) -> Tensor:
    return torch.randn(2, chans, size, size, generator=torch.Generator().manual_seed(0))


def theirs(name: str) -> nn.Module:
    model = torchvision.models.get_model(name).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)  # biases too, which are zero at first
    return model


@every_version
def test_torchvisions_weights_give_torchvisions_outputs(name: str) -> None:
    other = theirs(name)
    model = timm.create_model(name).eval()
    renamed = from_torchvision(other.state_dict())
    assert len(renamed) == len(other.state_dict())
    assert renamed.keys() == model.state_dict().keys()
    assert all(map(torch.equal, renamed.values(), other.state_dict().values()))
    model.load_state_dict(renamed)
    for size in (40, 42, 46):  # at which pools cut nothing off
        assert torch.equal(model(images(size)), other(images(size)))
    assert from_torchvision(renamed) == renamed


@every_version
def test_pretrained_files_are_torchvisions(name: str, tmp_path: Path) -> None:
    weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
    cfg = timm.create_model(name).default_cfg
    assert cfg["url"] == weights.url
    assert (cfg["input_size"], cfg["num_classes"]) == ((3, 224, 224), len(weights.meta["categories"]))
    assert (list(cfg["mean"]), list(cfg["std"])) == (weights.transforms().mean, weights.transforms().std)
    assert timm.models.is_model_pretrained(name)
    # What timm does with such a file, in another number of classes and channels.
    other = theirs(name)
    torch.save(other.state_dict(), tmp_path / "weights.pth")
    overlay = {"file": str(tmp_path / "weights.pth")}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=5, in_chans=1)
    assert torch.equal(model.stage1[1].expand3.weight, other.get_submodule("features.4.expand3x3").weight)
    assert torch.equal(model.conv1.weight, other.get_submodule("features.0").weight.sum(1, keepdim=True))
    assert model(images(chans=1)).shape == (2, 5)
    full = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    assert torch.equal(full(images()), other(images()))


@every_version
def test_default_cfg_names_the_ends(name: str) -> None:
    model = timm.create_model(name, num_classes=7, in_chans=4)
    assert model.get_submodule(model.default_cfg["first_conv"]).in_channels == 4
    assert model.get_submodule(model.default_cfg["classifier"]) is model.get_classifier()
    assert model.get_classifier().out_channels == model.num_classes == 7
    assert model.pretrained_cfg["architecture"] == name


@every_version
def test_features(name: str) -> None:
    x = images(64)
    whole = timm.create_model(name).eval()
    net = timm.create_model(name, features_only=True).eval()
    net.load_state_dict(whole.state_dict(), strict=False)
    maps = net(x)
    assert [m.shape[1] for m in maps] == net.feature_info.channels()
    for feature, reduction in zip(maps, net.feature_info.reduction(), strict=True):
        assert abs(feature.shape[2] - 64 / reduction) <= 3  # no padding in the stem
    last, intermediates = whole.forward_intermediates(x)
    assert torch.equal(last, whole.forward_features(x))
    assert all(map(torch.equal, maps, intermediates))
    few = timm.create_model(name, features_only=True, out_indices=(1, 3))
    assert few.feature_info.reduction() == [4, 16]
    assert [m.shape for m in few(x)] == [maps[1].shape, maps[3].shape]


def test_intermediates_that_are_asked_for() -> None:
    model = timm.create_model("squeezenet1_1").eval()
    _, every = model.forward_intermediates(images())
    seen: list[str] = []
    model.stage2.register_forward_hook(lambda *_: seen.append("stage2"))
    for indices, kept in ((2, [2, 3]), ([0, -1], [0, 3]), ([1], [1])):
        some = model.forward_intermediates(images(), indices, intermediates_only=True)
        assert [f.shape for f in some] == [every[i].shape for i in kept]
    seen.clear()
    assert torch.equal(model.forward_intermediates(images(), [0])[0], model.forward_features(images()))
    assert seen
    seen.clear()
    last, some = model.forward_intermediates(images(), [0, 1], stop_early=True)
    assert not seen
    assert torch.equal(last, some[1])
    with pytest.raises(ValueError, match=r"indices=\[4\] must lie in \[-4, 4\)"):
        model.forward_intermediates(images(), [4])
    with pytest.raises(ValueError, match="'NCHW'"):
        model.forward_intermediates(images(), output_fmt="NLC")


@pytest.mark.parametrize("last", range(4))
def test_pruned_to_what_is_needed(last: int) -> None:
    model = timm.create_model("squeezenet1_1").eval()
    expected = model.forward_intermediates(images(), [last], intermediates_only=True)[0]
    assert model.prune_intermediate_layers([last]) == [last]
    assert torch.equal(model(images()), expected)
    assert model.num_features == expected.shape[1]
    assert sum(info["module"] in ("stage2", "stage3") for info in model.feature_info) == 2


def test_classifiers_come_and_go() -> None:
    model = timm.create_model("squeezenet1_1", num_classes=0).eval()
    features = model.forward_features(images())
    assert torch.allclose(model(images()), features.mean((2, 3)))
    assert torch.equal(model.forward_head(features, pre_logits=True), model(images()))
    model.reset_classifier(3)
    assert model.num_classes == 3
    logits = model(images())
    assert logits.shape == (2, 3)
    model.reset_classifier(3, global_pool="max")
    assert model.global_pool.pool_type == "max"
    model.double().reset_classifier(4, "")
    assert model(images().double()).shape == (2, 4, *features.shape[2:])


def test_dropout_stands_before_the_classifier() -> None:
    model = timm.create_model("squeezenet1_1", drop_rate=1.0)
    nn.init.constant_(model.classifier.bias, 0.25)
    assert torch.equal(model(images()), torch.full((2, 1000), 0.25))
    assert timm.create_model("squeezenet1_1").drop.p == 0.5
    assert not torch.equal(model.eval()(images()), torch.full((2, 1000), 0.25))


@every_version
def test_start_of_training(name: str) -> None:
    """As in the paper's own release and torchvision: small weights at the end, no biases."""
    model = timm.create_model(name)
    assert model.classifier.weight.std().item() == pytest.approx(0.01, rel=0.01)
    fan_in = model.stage2[1].expand3.weight[0].numel()
    assert model.stage2[1].expand3.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
    assert all(p.count_nonzero() == 0 for n, p in model.named_parameters() if n.endswith("bias"))


def test_layers_of_timms_groups() -> None:
    model = timm.create_model("squeezenet1_1")
    groups = timm.models.group_parameters(model, model.group_matcher())
    assert sum(map(len, groups.values())) == len(list(model.parameters()))
    assert len(groups) == 10  # stem, eight fire modules, classifier
    assert len(timm.models.group_parameters(model, model.group_matcher(coarse=True))) == 5
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model.set_grad_checkpointing()
    model.set_grad_checkpointing(False)


def test_pruning_takes_every_convolution() -> None:
    model = timm.create_model("squeezenet1_1")
    convolutions = [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    assert [target.name for target in lc.Targets().select(model)] == convolutions
    assert len(convolutions) == 26


def test_everything_becomes_integers(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    net = networks.SqueezeNet((8, 3), [[(4, 8)], [None, (4, 8)]], num_classes=4)
    module = lc.ClassificationModule(net, 4)
    data = DataLoader(TensorDataset(images(32), torch.tensor([0, 1])), batch_size=2)
    Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[lc.QuantizationAwareTraining()],
    ).fit(module, data)  # fmt: skip
    file = lc.export_onnx(lc.finalize(module, module="model"), tmp_path / "model.onnx", images(32)[:1])
    assert file.integers is not None
    assert file.integers.integer["conv"] == 8
    assert file.integers.integer["concat"] == 2
    assert not {"conv", "concat"} & file.integers.float.keys()
    assert file.parity is not None
    assert max(file.parity.steps.values()) <= 1


@pytest.mark.parametrize("name", ["resnet20_cifar", "conv4", "lenet300_100", "lenet5", *VERSIONS])
def test_networks_are_pickled_by_a_name_that_holds(name: str) -> None:
    model = timm.create_model(name)
    assert type(pickle.loads(pickle.dumps(model))) is type(model)
    # Files from when the package was one module name them so.
    assert getattr(networks, type(model).__name__) is type(model)
