from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from lightning_compress.channels.discovery import find_groups
from lightning_compress.channels.groups import ChannelGroup, named_tensors
from lightning_compress.channels.remove import remove_
from lightning_compress.models.networks import cifar_resnet
from tests.channels.nets import (
    SOUND,
    Auxiliary,
    Concatenated,
    Flattened,
    Ghost,
    Grouped,
    Heads,
    Padded,
    Residual,
    SharedWeight,
    Squeeze,
    images,
    trained,
    transformer,
)


def found(net: nn.Module) -> tuple[dict[str, ChannelGroup], dict[str, str]]:
    groups, whole = find_groups(net, (images(),), {})
    return {group.name: group for group in groups}, whole


def names(group: ChannelGroup) -> list[str]:
    return sorted(item.tensor for item in group.output_slices)


def test_a_stream_goes_with_all_that_write_to_it() -> None:
    groups, whole = found(Residual())
    assert not whole
    stream = next(group for group in groups.values() if group.num_channels == 8)
    assert names(stream) == sorted(
        ["stem.weight", "stem.bias"]
        + [f"blocks.{i}.{part}" for i in (0, 1) for part in ("conv2.weight", "norm2.weight", "norm2.bias")]
    )
    assert {item.tensor for item in stream.input_slices} == {
        "blocks.0.conv1.weight",
        "blocks.1.conv1.weight",
        "fc.weight",
    }
    assert len(stream.carried_slices) == 4  # running mean and variance of two norms
    assert sorted(group.num_channels for group in groups.values()) == [6, 8, 10]


def test_a_depthwise_convolution_and_its_gate_go_with_their_input() -> None:
    groups, _ = found(Squeeze())
    wide = next(group for group in groups.values() if group.num_channels == 8)
    assert names(wide) == sorted(f"{n}.{k}" for n in ("expand", "depthwise", "gate") for k in ("weight", "bias"))
    assert {item.tensor for item in wide.input_slices} == {"reduce.weight", "project.weight"}
    assert "project" not in groups, "makes the output"


def test_groups_of_a_convolution_lose_the_same_places() -> None:
    groups, _ = found(Grouped())
    assert {name: group.num_channels for name, group in groups.items()} == {"before": 4, "grouped": 2}
    second = torch.tensor([False, True, False, False])
    made = next(item for item in groups["before"].output_slices if item.tensor == "before.weight")
    read = groups["before"].input_slices[0]
    assert made.positions_of(second).tolist() == [1, 5, 9]
    assert (read.tensor, read.dim, read.positions_of(second).tolist()) == ("grouped.weight", 1, [1])


def test_parts_of_a_concatenation_have_channels_of_their_own() -> None:
    groups, _ = found(Concatenated())
    norm = next(item for item in groups["right"].output_slices if item.tensor == "norm.weight")
    assert norm.positions.tolist() == [4, 5, 6, 7, 8, 9]
    assert {item.tensor for item in groups["right"].input_slices} == {"join.weight", "side.weight"}


def test_channels_tied_in_two_ways_are_one() -> None:
    groups, _ = found(Ghost())
    assert [group.num_channels for group in groups.values()] == [4]
    (group,) = groups.values()
    stem = next(item for item in group.output_slices if item.tensor == "stem.weight")
    assert stem.positions_of(torch.tensor([True, False, False, False])).tolist() == [0, 4]


def test_pixels_transposed_convolutions_and_slopes() -> None:
    groups, _ = found(Flattened())
    up = next(group for group in groups.values() if "up.weight" in names(group))
    assert next(item for item in up.output_slices if item.tensor == "up.weight").dim == 1
    assert [item.tensor for item in up.carried_slices] == ["slopes.weight"]
    pixels = next(item for item in up.input_slices if item.tensor == "fc1.weight")
    assert pixels.positions_of(torch.tensor([False, True, *4 * [False]])).tolist() == list(range(144, 288))


def test_a_shortcut_that_pads_channels_keeps_those_beside_it() -> None:
    groups, whole = found(Padded())
    assert not whole
    assert {name: group.num_channels for name, group in groups.items()} == {"stem": 4, "conv1": 8}
    made = next(item for item in groups["stem"].output_slices if item.tensor == "conv2.weight")
    assert made.positions.tolist() == [2, 3, 4, 5]


def test_the_stream_of_a_cifar_network() -> None:
    groups, whole = find_groups(cifar_resnet.resnet20_cifar(), (torch.randn(1, 3, 32, 32),), {})
    inner = [f"layer{i}.{j}.conv1" for i in (1, 2, 3) for j in (0, 1, 2)]
    assert [group.name for group in groups] == ["conv1", *inner]
    assert not whole


def test_transformers_lose_heads_and_hidden_units_and_keep_their_stream() -> None:
    groups, whole = found(transformer())
    assert {name: group.num_channels for name, group in groups.items()} == {
        **{f"blocks.{i}.attn": 3 for i in (0, 1)},
        **{f"blocks.{i}.mlp.fc1": 24 for i in (0, 1)},
    }
    assert all("LayerNorm mixes channels" in reason for reason in whole.values())


def test_a_classifier_that_is_a_convolution_is_left_alone() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    groups, _ = found(net)
    assert list(groups) == ["0"]


UNLIKE = "the model computes a different output after the removal of some of its channels"


@pytest.mark.parametrize(
    ("make", "groups", "whole"),
    [
        (Heads, ["stem"], ["q", "k", "v"]),
        (SharedWeight, ["one"], []),
        (Auxiliary, ["stem", "inner"], []),
    ],
)
def test_literal_shapes_shared_weights_and_heads_of_training_only(
    make: type[nn.Module], groups: list[str], whole: list[str]
) -> None:
    sound, reasons = found(make())
    assert list(sound) == groups
    assert reasons == dict.fromkeys(whole, UNLIKE)


def test_groups_that_are_sound_one_by_one_are_tried_together() -> None:
    class Pair(nn.Module):
        """Fails where both have lost channels."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            self.d = nn.Conv2d(8, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.c(self.a(x).relu()) + self.d(self.b(x).relu())
            return y * (1.0 + (len(self.a.weight) < 8) * (len(self.b.weight) < 8))

    groups, whole = found(Pair())
    assert list(groups) == ["a"]
    assert whole == {"b": UNLIKE}


def test_weights_that_are_computed_from_others_stay() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1))
    nn.utils.parametrizations.weight_norm(net[0])
    groups, whole = found(net)
    assert list(groups) == ["2"]
    assert whole == {"0": "the weight of '0' is computed from other tensors"}


def test_a_network_that_makes_tensors_of_its_own_precision() -> None:
    class Scaled(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float() / 255)

    assert len(found(Scaled())[0]) == 3


def test_a_network_with_a_mask_that_overflows_in_double_precision() -> None:
    class Masked(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            lowest = torch.finfo(x.dtype).min
            scores = torch.full((3, 3), lowest, dtype=x.dtype) + 0.6 * lowest  # -inf, where float32 keeps its range
            scores = scores if x.dtype == torch.float64 else torch.zeros(3, 3)
            return super().forward(torch.einsum("ncij,cd->ndij", x, scores.softmax(0)))

    assert len(found(Masked())[0]) == 3


@pytest.mark.parametrize("dim", [1, 2])
def test_a_maximum_with_its_index(dim: int) -> None:
    class Largest(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.conv(x).flatten(2)  # (N, 8, pixels)
            features = features if dim == 2 else features.mT
            return self.fc(torch.max(features, dim)[0])

    groups, whole = found(Largest())
    assert (groups["conv"].num_channels, whole) == (8, {})


class Conv1D(nn.Module):
    """A linear layer as in GPT-2: its weight is (in, out), and it shapes its output by an attribute."""

    def __init__(self, nf: int, nx: int) -> None:
        super().__init__()
        self.nf, self.nx = nf, nx
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.randn(nf))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.addmm(self.bias, x.flatten(0, -2), self.weight).view(*x.shape[:-1], self.nf)


def test_a_linear_layer_that_stores_its_weight_transposed() -> None:
    net = nn.Sequential(Conv1D(16, 6), nn.GELU(), Conv1D(4, 16))
    groups, _ = found(net)
    assert groups["0"].num_channels == 16
    remove_(net, {groups["0"]: torch.arange(16) < 5})
    assert (net[0].nf, net[2].nx, net(images()).shape) == (11, 11, (2, 3, 6, 4))


def test_a_network_that_draws_random_numbers() -> None:
    class Noisy(Residual):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x + torch.randn_like(x))

    assert len(found(Noisy())[0]) == 3


def test_channels_that_all_depend_on_each_other_are_named() -> None:
    net = nn.Sequential(nn.Conv2d(3, 1, 1), nn.Conv2d(1, 4, 1))
    assert found(net) == ({}, {"0": "all of its channels depend on each other"})


def test_a_parameter_of_no_layer_goes_with_the_channels() -> None:
    class Gamma(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
            self.gamma = nn.Parameter(torch.ones(8, 1, 1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.conv(x) * self.gamma)

    groups, whole = found(Gamma())
    assert not whole
    assert [item.tensor for item in groups["conv"].carried_slices] == ["gamma"]


class InThrees(nn.Module):
    """Computes with any multiple of three channels: half of six passes, and one channel fewer does not."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        if x.shape[1] % 3:
            raise ValueError("not a multiple of three")
        return self.head(x.relu())


def test_a_second_number_of_channels_is_tried() -> None:
    groups, whole = found(InThrees())
    assert not groups
    assert "different output" in whole["conv"]


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_any_channels_can_go(make: type[nn.Module]) -> None:
    net = trained(make).double()
    groups = list(found(net)[0].values())
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        chosen = {g: torch.rand(g.num_channels, generator=generator) < 0.6 for g in groups}
        chosen = {g: removed & (torch.arange(len(removed)) != seed % len(removed)) for g, removed in chosen.items()}
        masked, small = copy.deepcopy(net), copy.deepcopy(net)
        for group, removed in chosen.items():
            group.zero_(named_tensors(masked), removed)
        remove_(small, chosen)
        torch.testing.assert_close(small(images().double()), masked(images().double()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("make", SOUND.values(), ids=SOUND)
def test_the_network_stays_as_it_is(make: type[nn.Module]) -> None:
    net = make().train()
    next(net.parameters()).requires_grad_(False)
    state, flags = copy.deepcopy(net.state_dict()), [p.requires_grad for p in net.parameters()]
    random = torch.get_rng_state()
    found(net)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert [p.requires_grad for p in net.parameters()] == flags
    assert net.training
    assert not any(module._forward_hooks for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_inputs_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="The model cannot be run on the example inputs"):
        find_groups(Residual(), (torch.randn(2, 5, 6, 6),), {})


def test_networks_that_cannot_be_tried_are_refused() -> None:
    @dataclasses.dataclass
    class Output:
        logits: torch.Tensor

    class Wrapped(Residual):
        def forward(self, x: torch.Tensor) -> Output:
            return Output(super().forward(x))

    with pytest.raises(ValueError, match="The output of the model contains no tensors"):
        find_groups(Wrapped(), (images(),), {})


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("normalize", [nn.utils.weight_norm, nn.utils.spectral_norm])
def test_a_weight_that_a_hook_computes_stays(normalize: Callable[[nn.Module], nn.Module]) -> None:
    net = nn.Sequential(normalize(nn.Conv2d(3, 6, 1)), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1))
    net(images())
    groups, reasons = find_groups(net, (images(),), {})
    assert [[channel_slice.tensor for channel_slice in group.slices] for group in groups] == [
        ["2.weight", "2.bias", "4.weight"]
    ]
    assert reasons == {"0": "the weight of '0' is computed from other tensors"}


def test_hooks_that_compute_count_and_those_that_record_are_not_called_for_each_trial() -> None:
    net = nn.Sequential(nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 4, 1))
    seen: list[torch.Tensor] = []
    net[2].register_forward_hook(lambda module, args, output: seen.append(output))
    assert [group.name for group in find_groups(net, (images(),), {})[0]] == ["0", "2"]
    assert len(seen) == 1
    net[0].register_forward_hook(lambda module, args, output: output.flip(1))
    groups, reasons = find_groups(net, (images(),), {})
    assert [group.name for group in groups] == ["2"]
    assert "pass through '0'" in reasons["0"]
