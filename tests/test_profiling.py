"""One clock and one count of multiply-accumulates for costs, catalogue and exported files."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_compress.models.catalogue.counting import macs
from lightning_compress.profiling import compare_latencies, count_macs, measure_latency, one_thread


class Clock:
    """A clock that advances only in calls."""

    def __init__(self) -> None:
        self.now = 0.0
        self.called: list[str] = []

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: Iterator[float], name: str = "") -> Callable[[], None]:
        def call() -> None:
            self.called.append(name)
            self.now += next(seconds)

        return call


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_median_after_warm_up() -> None:
    clock = Clock()
    call = clock.taking(iter([100.0, 100.0, 5.0, 1.0, 2.0, 90.0, 3.0]))
    assert measure_latency(call, repeats=5, warm_up=2, timer=clock) == 3.0
    assert len(clock.called) == 7


def test_calls_are_interleaved_in_random_order() -> None:
    clock = Clock()
    calls = {name: clock.taking(itertools.repeat(seconds), name) for name, seconds in (("a", 1.0), ("b", 2.0))}
    assert compare_latencies(calls, repeats=8, warm_up=2, timer=clock) == {"a": 1.0, "b": 2.0}
    rounds = [tuple(clock.called[i : i + 2]) for i in range(0, 20, 2)]
    assert set(rounds) == {("a", "b"), ("b", "a")}
    assert len(clock.called) == 20


@pytest.mark.usefixtures("two_threads")
def test_one_thread_while_measuring_and_as_many_as_before_afterwards() -> None:
    threads: list[int] = []
    measure_latency(lambda: threads.append(torch.get_num_threads()), repeats=2, warm_up=1)
    assert threads == [1, 1, 1]
    assert torch.get_num_threads() == 2
    with pytest.raises(ZeroDivisionError):
        measure_latency(lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError), one_thread():
        1 // 0  # noqa: B018
    assert torch.get_num_threads() == 2


def test_kernels_of_an_initialized_gpu_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: events.append("synchronize"))

    def timer() -> float:
        events.append("timer")
        return 0.0

    measure_latency(lambda: events.append("call"), repeats=1, warm_up=0, timer=timer)
    assert events == ["synchronize", "timer", "call", "synchronize", "timer"]


def flops(model: nn.Module, inputs: Tensor) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(inputs)
    return counter.get_total_flops()


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.parametrize(
    "name", ["resnet20_cifar", "mobilenetv3_small_050", "vit_tiny_patch16_224", "edgenext_xx_small"]
)
def test_the_count_is_that_of_torch_on_any_device(name: str, device: str) -> None:
    size = 224 if name.startswith("vit") else 32
    with torch.device("meta"):
        network = timm.create_model(name).eval()
        # On the meta device torch counts attention, too; on the CPU its kernel for attention has no formula.
        expected = flops(network, torch.zeros(1, 3, size, size)) // 2
    if device == "cpu":
        network = timm.create_model(name).eval()
    counts = count_macs(network, torch.zeros(1, 3, size, size, device=device))
    assert counts.total == expected
    assert (counts.activations > 0) == (name in ("vit_tiny_patch16_224", "edgenext_xx_small"))
    if device == "meta":
        assert macs(network, (3, size, size)) == expected


def test_layers_by_hand() -> None:
    network = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.BatchNorm2d(8), nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2), nn.Flatten(),
        nn.Linear(6 * 64, 5),
    )  # fmt: skip
    counts = count_macs(network, torch.zeros(2, 4, 6, 6))
    convolution, transposed, linear = 2 * 16 * 8 * 2 * 9, 2 * 16 * 8 * 3 * 4, 2 * 5 * 6 * 64
    assert counts.weights == {"0.weight": convolution, "2.weight": transposed, "4.weight": linear}
    assert counts.activations == 0


class Attention(nn.Module):
    """Multi-head attention, whose inference kernel is fused."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


def test_fused_attention_is_counted() -> None:
    counts = count_macs(Attention().eval(), torch.zeros(2, 3, 8))
    tokens = 2 * 3
    assert counts.weights == {
        "attention.in_proj_weight": tokens * 8 * 24,
        "attention.out_proj.weight": tokens * 8 * 8,
    }
    assert counts.activations == 2 * 2 * (3 * 3 * 4) * 2
    assert torch.backends.mha.get_fastpath_enabled()


class Shared(nn.Module):
    """A weight of two layers, one that a function reads, one that is standardized, and a parameter as input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.functional, self.standardized = (nn.Linear(4, 4) for _ in range(4))
        self.second.weight = self.first.weight
        self.standardized.forward = self._standardized  # type: ignore[method-assign]
        self.queries = nn.Parameter(torch.zeros(3, 4))

    def _standardized(self, x: Tensor) -> Tensor:
        weight = self.standardized.weight
        return F.linear(x, weight - weight.mean(dim=1, keepdim=True), self.standardized.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.standardized(F.linear(self.second(self.first(x)), self.functional.weight))
        return x.sum() + self.second(self.queries).sum()


def test_counts_belong_to_the_parameter_that_is_multiplied() -> None:
    counts = count_macs(Shared(), torch.zeros(2, 4))
    each = 2 * 4 * 4
    assert counts.weights == {
        "first.weight": 2 * each + 3 * 4 * 4,
        "functional.weight": each,
        "standardized.weight": each,
    }
    assert counts.activations == 0


def test_a_network_is_left_as_it_was_and_arguments_have_any_form() -> None:
    network = nn.Sequential(nn.Linear(2, 3))
    counts = count_macs(network, torch.zeros(1, 2))
    assert counts == count_macs(network, (torch.zeros(1, 2),)) == count_macs(network, {"input": torch.zeros(1, 2)})
    with pytest.raises(RuntimeError, match="shapes"):
        count_macs(network, torch.zeros(1, 3))
    assert not network[0]._forward_hooks
    assert not network[0]._forward_pre_hooks


def test_a_parameter_that_a_module_takes_as_its_argument() -> None:
    class Token(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.fc = nn.Parameter(torch.randn(1, 4)), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.fc(self.token)

    model = Token()
    assert count_macs(model, torch.randn(2, 3)).weights == {"fc.weight": 12}
    assert all(parameter.requires_grad for parameter in model.parameters())
