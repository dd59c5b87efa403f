from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_compress.distillation.frozen_network import FrozenNetwork, fingerprint
from lightning_compress.distillation.image_conversion import Conversion, Normalization

IMAGES = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
CONVERSION = Conversion(Normalization((0.0,), (1.0,)), Normalization((0.5,), (0.25,)), (6, 6))


class Net(nn.Module):
    """Norms and dropout, which tell training from evaluation, and a count of samples that were seen."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.conv = nn.Conv2d(3, 4, 3)
            self.norm = nn.BatchNorm2d(4)
            self.dropout = nn.Dropout(0.5)
            self.head = nn.Linear(4, 3)
            self.norm.running_mean.normal_()
        self.seen: list[Any] = []

    def forward(self, x: Tensor, scale: Any = 1.0) -> Tensor:
        self.seen.append(x)
        return self.head(self.dropout(self.norm(self.conv(x)).relu().mean((2, 3)))) * scale


def expected(images: Tensor = IMAGES) -> Tensor:
    return Net().eval()(images).detach()


def ask(teacher: FrozenNetwork, *args: Any, **kwargs: Any) -> Any:
    return teacher.forward(args, kwargs)


def make(network: nn.Module | None = None, **options: Any) -> FrozenNetwork:
    return FrozenNetwork(network or Net(), name="net", **options)


def test_nothing_about_it_changes_whoever_trains_it() -> None:
    teacher = make()
    before = {name: value.clone() for name, value in teacher.network.state_dict().items()}
    for step in range(6):
        if step % 2:
            teacher.network.train()
        if step == 3:
            teacher.network.norm.train()
        assert torch.equal(ask(teacher, IMAGES), expected())
        assert not any(module.training for module in teacher.network.modules())
    after = teacher.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p.requires_grad for p in teacher.network.parameters())


def test_a_part_that_trains_is_noticed() -> None:
    teacher = make()
    teacher.network.norm.train()
    assert torch.equal(ask(teacher, IMAGES), expected())


def test_the_original_stays_as_it_is() -> None:
    network = Net().train()
    network.norm.eval()
    network.conv.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    teacher = make(network, dtype=torch.bfloat16, layers=("norm",))
    ask(teacher, IMAGES)
    assert [module.training for module in network.modules()] == [True, True, False, True, True]
    assert [p.requires_grad for p in network.parameters()] == [False] + 5 * [True]
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network.seen
    assert not network.norm._forward_hooks
    network.conv.weight.data.zero_()
    assert teacher.network.conv.weight.any()


def test_no_graph_but_gradients_beside_it() -> None:
    teacher, images = make(layers=("norm",)), IMAGES.clone().requires_grad_()
    with teacher.features.record():
        output = teacher.forward((images,), {})
        assert torch.is_grad_enabled()
        assert not output.requires_grad
        assert not teacher.features["norm"].output.requires_grad
        (images.sum() * output.sum()).backward()
    assert images.grad is not None
    with torch.no_grad():
        ask(teacher, images)
        assert not torch.is_grad_enabled()


def test_no_graph_of_a_network_that_wants_one() -> None:
    teacher = make()
    teacher.network.requires_grad_(True)
    assert not ask(teacher, IMAGES).requires_grad


def test_its_features_are_released() -> None:
    teacher = make(layers=("norm", ""))
    with teacher.features.record():
        output = teacher.forward((IMAGES,), {})
        assert teacher.features[""].output is output
        assert teacher.features["norm"].output.shape == (4, 4, 3, 3)
    assert "norm" not in teacher.features
    with pytest.raises(ValueError, match="The teacher has no module 'layer9'"):
        make(layers=("layer9",))


def test_copies_are_itself_and_pickles_are_not() -> None:
    teacher = make(layers=("norm",))
    holder = {"teachers": [teacher]}
    assert copy.deepcopy(holder)["teachers"][0] is teacher
    other = pickle.loads(pickle.dumps(teacher))
    with other.features.record():
        assert torch.equal(other.forward((IMAGES,), {}), expected())
        assert "norm" in other.features
        assert "norm" not in teacher.features
    assert other.identity == teacher.identity


def test_is_no_part_of_who_holds_it() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.teacher = make()

    holder = Holder()
    assert not list(holder.parameters())
    assert not holder.state_dict()
    holder.double().train()
    assert holder.teacher.network.conv.weight.dtype == torch.float32
    assert not holder.teacher.network.training


@pytest.mark.parametrize("given_dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
def test_inputs_become_its_type(given_dtype: torch.dtype, dtype: torch.dtype | None) -> None:
    teacher = make(dtype=dtype)
    found = ask(teacher, IMAGES.to(given_dtype))
    assert found.dtype == (dtype or torch.float32)
    torch.testing.assert_close(found.float(), expected(), rtol=0.05, atol=0.05)


def test_a_network_of_its_own_type_keeps_it() -> None:
    assert ask(make(Net().double()), IMAGES).dtype == torch.float64


class Whatever(nn.Module):
    """Returns its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return args, kwargs


def test_all_that_is_a_tensor_is_converted_and_integers_are_not() -> None:
    tokens, mask = torch.arange(6).view(2, 3), torch.tensor([True, False])
    bytes_ = torch.ones(2, 3, 4, 4, dtype=torch.uint8)
    nested = {"a": [torch.ones(2, requires_grad=True), "text", None, 3], "b": (tokens,)}
    (found, kwargs) = ask(make(Whatever(), conversion=CONVERSION), tokens, bytes_, nested, IMAGES, mask=mask)
    assert found[0].dtype == tokens.dtype
    assert torch.equal(found[0], tokens)
    assert torch.equal(found[1], bytes_)
    assert found[1].dtype == torch.uint8
    assert torch.equal(kwargs["mask"], mask)
    assert found[2]["a"][0].dtype == torch.float64
    assert not found[2]["a"][0].requires_grad
    assert found[2]["a"][1:] == ["text", None, 3]
    assert torch.equal(found[3], CONVERSION(IMAGES).double())


def test_images_are_converted_and_left_as_they_were() -> None:
    before = IMAGES.clone()
    assert torch.equal(ask(make(conversion=CONVERSION), IMAGES), expected(CONVERSION(IMAGES)))
    assert torch.equal(IMAGES, before)


def test_a_network_without_parameters() -> None:
    assert torch.equal(ask(make(nn.Flatten()), IMAGES), IMAGES.flatten(1))


# Fingerprints.


def state() -> dict[str, Tensor]:
    return {
        "a.weight": torch.arange(6.0).view(2, 3),
        "a.count": torch.tensor(3),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 4),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "complex": torch.ones(2, dtype=torch.complex64),
    }


CHANGES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "value": lambda s: s["a.weight"][1, 2].add_(1e-6),
    "sign of zero": lambda s: s["a.weight"][0, 0].neg_(),
    "count": lambda s: s["a.count"].add_(1),
    "flag": lambda s: s["flags"][1].fill_(True),
    "name": lambda s: s.update({"a.weights": s.pop("a.weight")}),
    "dtype": lambda s: s.update({"a.count": s["a.count"].view(torch.float64)}),
    "shape": lambda s: s.update({"a.weight": s["a.weight"].view(3, 2)}),
    "empty": lambda s: s.update({"none": torch.zeros(4, 0)}),
    "one more": lambda s: s.update({"b": torch.zeros(0)}),
    "one less": lambda s: s.pop("none"),
    "swapped": lambda s: s.update({"a.weight": s["a.weight"].flip(0)}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_difference_shows(change: str) -> None:
    other = state()
    CHANGES[change](other)
    assert fingerprint(other) != fingerprint(state())


@given(st.integers(0, 5), st.integers(0, 31))
@settings(max_examples=40, deadline=None)
def test_any_bit_shows(index: int, bit: int) -> None:
    other = state()
    bits = other["a.weight"].view(torch.int32).flatten()
    bits[index] ^= torch.tensor(1 << bit if bit < 31 else -(2**31), dtype=torch.int32)
    assert fingerprint(other) != fingerprint(state())


def test_order_layout_and_gradients_do_not_show() -> None:
    other = dict(reversed(state().items()))
    other["a.weight"] = other["a.weight"].t().contiguous().t().requires_grad_()
    assert fingerprint(other) == fingerprint(state())


def test_what_is_no_tensor_is_left_out() -> None:
    assert fingerprint({**state(), "_extra_state": {"version": 3}}) == fingerprint(state())


def test_the_same_in_every_process() -> None:
    found = fingerprint({"b": torch.tensor(True), "a": torch.arange(6.0)})
    assert found == "02273ec0efea96ad33c73df91841cc86"


def test_identity_is_that_of_the_weights_as_they_were_given() -> None:
    assert make().identity == {"name": "net", "hash": fingerprint(Net().state_dict())}
    assert make(dtype=torch.bfloat16).identity == make().identity


# With a cache.


def ask_keyed(teacher: FrozenNetwork, *keys: int) -> Tensor:
    return teacher.forward((IMAGES[list(keys)],), {}, torch.tensor(keys))


def num_seen(teacher: FrozenNetwork) -> int:
    return sum(len(each) for each in teacher.network.seen)


def test_only_missing_samples_are_computed(tmp_path: Path) -> None:
    teacher = make(cache=tmp_path)
    assert torch.equal(ask_keyed(teacher, 0, 1), ask(make(), IMAGES[:2]))
    assert num_seen(teacher) == 2
    ask_keyed(teacher, 1, 0)
    assert num_seen(teacher) == 2
    torch.testing.assert_close(ask_keyed(teacher, 0, 3, 1), expected()[[0, 3, 1]])
    assert num_seen(teacher) == 3
    again = make(cache=tmp_path)
    torch.testing.assert_close(ask_keyed(again, 3, 0, 1), expected()[[3, 0, 1]])
    assert num_seen(again) == 0


def test_without_keys_the_cache_is_not_asked(tmp_path: Path) -> None:
    teacher = make(cache=tmp_path)
    ask(teacher, IMAGES)
    assert num_seen(teacher) == 4
    assert not list(tmp_path.iterdir())
    without = make()
    ask_keyed(without, 0, 1)
    ask_keyed(without, 0, 1)
    assert num_seen(without) == 4


def test_logits_of_other_numerics_are_others(tmp_path: Path) -> None:
    def folders() -> int:
        return len(list(tmp_path.iterdir()))

    changed = Net()
    changed.head.bias.data[0] += 1
    ask_keyed(make(cache=tmp_path), 0)
    with torch.autocast("cpu", torch.bfloat16):
        ask_keyed(make(cache=tmp_path), 0)
        assert folders() == 2
        ask_keyed(make(cache=tmp_path), 0)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        ask_keyed(make(cache=tmp_path), 0)
    assert folders() == 2
    with torch.autocast("cpu", torch.float16):
        ask_keyed(make(cache=tmp_path), 0)
    ask_keyed(make(cache=tmp_path, dtype=torch.bfloat16), 0)
    ask_keyed(make(cache=tmp_path, conversion=CONVERSION), 0)
    ask_keyed(make(cache=tmp_path, conversion=Conversion(None, None, (7, 7))), 0)
    ask_keyed(make(changed, cache=tmp_path), 0)
    assert folders() == 7
    ask_keyed(FrozenNetwork(Net(), name="other", cache=tmp_path), 0)
    assert folders() == 8
    with torch.autocast("cpu", torch.bfloat16):
        found = ask_keyed(make(cache=tmp_path), 0)
        assert torch.equal(found, Net().eval()(IMAGES[:1]).float())


def test_what_a_cache_needs(tmp_path: Path) -> None:
    teacher, keys = make(cache=tmp_path), torch.arange(4)
    for args, kwargs in (((IMAGES, 2.0), {}), ((), {"x": IMAGES}), ((IMAGES,), {"scale": 2.0}), (([IMAGES],), {})):
        with pytest.raises(
            ValueError, match=r"cache=\.\.\. supports only a student that is called with one tensor: leave"
        ):
            teacher.forward(args, kwargs, keys)
    with pytest.raises(ValueError, match="called with 3 samples of a batch that has 4 keys: a cache needs one"):
        teacher.forward((IMAGES[:3],), {}, keys)
    with pytest.raises(ValueError, match=r"stores logits \(N, C\) only, not \(4, 2, 5, 5\): leave"):
        FrozenNetwork(nn.Conv2d(3, 2, 1), name="net", cache=tmp_path).forward((IMAGES,), {}, keys)


def test_a_pickled_cache_opens_its_files_again(tmp_path: Path) -> None:
    teacher = make(cache=tmp_path)
    ask_keyed(teacher, 0, 1)
    other = pickle.loads(pickle.dumps(teacher))
    other.network.seen.clear()
    torch.testing.assert_close(ask_keyed(other, 0, 1), expected()[:2])
    assert num_seen(other) == 0


def test_compiled_it_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self: compile_(self, backend="aot_eager"))
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3))
    teacher = make(network, compiled=True, layers=("1",))
    assert teacher.network._compiled_call_impl is not None
    for _ in range(2):
        with teacher.features.record():
            output = teacher.forward((IMAGES,), {})
            assert torch.equal(teacher.features["1"].output, network.eval()[1](network[0](IMAGES)))
            torch.testing.assert_close(output, network(IMAGES))
