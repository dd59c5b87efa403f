"""Training finds the calls again that one traced evaluation has shown, whatever else it calls, skips or repeats."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lightning_compress as lc
from lightning_compress.quantization.call_patcher import CallPatcher, CallSite, install_all, patcher_of
from lightning_compress.quantization.compilation import support_compilation
from lightning_compress.quantization.forward_pass import active
from lightning_compress.quantization.insertion import quantizers_of
from lightning_compress.quantization.tracing import record_graph


class Note:
    """Action that records the name of its call."""

    notes: list[str]

    def __init__(self, notes: list[str], name: str) -> None:
        self.notes, self.name = notes, name

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self.notes.append(self.name)
        return function(*args, **kwargs)

    def __deepcopy__(self, memo: Any) -> Note:
        return self


def watched(model: nn.Module, x: Tensor) -> list[str]:
    """Trace a model in eval mode and note every call of it from now on."""
    with record_graph(model.eval()) as graph, torch.no_grad():
        model(x)
    notes: list[str] = []
    table: dict[str, dict[CallSite, Note]] = {}
    for node in graph.nodes:
        name = f"{node.module}:{node.call.function}_{node.call.occurrence}_{node.call.repeat}"
        table.setdefault(node.module, {})[node.call] = Note(notes, name)
    install_all(model, {name: CallPatcher(actions) for name, actions in table.items()}, graph.index, graph.called)
    return notes


def calls(model: nn.Module, x: Tensor, notes: list[str], *, training: bool = True) -> list[str]:
    notes.clear()
    model.train(training)(x)
    assert active == []
    return notes[:]


class Noisy(nn.Module):
    """Noise, an auxiliary head and another activation in training."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.aux = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            x = x + 0.1 * torch.randn_like(x)
        y = F.relu(self.a(x))
        if self.training:
            y = y + F.relu(self.aux(y))
        y = y + self.b(y)
        return F.relu(y) + x


def test_calls_in_training_only_are_no_calls_of_the_trace() -> None:
    x, model = torch.randn(3, 4), Noisy()
    notes = watched(model, x)
    expected = calls(model, x, notes, training=False)
    assert len(expected) == 6
    assert calls(model, x, notes) == expected


class Layers(nn.Module):
    """Residual layers, some of which are skipped; each adds in the same line."""

    def __init__(self, num_layers: int = 4) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(num_layers))
        self.skipped: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        for i, layer in enumerate(self.layers):
            if i not in self.skipped:
                x = x + torch.tanh(layer(x))
        return x


@pytest.mark.parametrize("skipped", [(0,), (1, 2), (3,), (0, 1, 2, 3)])
def test_layers_that_are_skipped_shift_no_others(skipped: tuple[int, ...]) -> None:
    x, model = torch.randn(3, 4), Layers()
    notes = watched(model, x)
    per_layer = [calls(model, x, notes, training=False)[3 * i : 3 * i + 3] for i in range(4)]
    model.skipped = skipped
    assert calls(model, x, notes) == [note for i, each in enumerate(per_layer) if i not in skipped for note in each]


class Pyramid(nn.Module):
    """A head of two layers on several levels, called from a neck that is itself called on two views."""

    class Neck(nn.Module):
        def __init__(self, head: nn.Module) -> None:
            super().__init__()
            self.head = head
            self.skips = False

        def forward(self, x: Tensor) -> Tensor:
            y = x if self.skips else self.head(x)
            return self.head(y) + self.head(x * 2)

    def __init__(self) -> None:
        super().__init__()
        self.neck = self.Neck(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    def forward(self, x: Tensor) -> Tensor:
        return self.neck(x) - self.neck(-x)


def test_repeats_are_counted_through_all_modules_around() -> None:
    x, model = torch.randn(3, 4), Pyramid()
    notes = watched(model, x)
    expected = calls(model, x, notes, training=False)
    linears = [note for note in expected if note.startswith("neck.head.0:")]
    assert linears == [f"neck.head.0:linear_0_{i}" for i in range(6)]
    assert calls(model, x, notes) == expected


def test_a_part_that_is_called_by_itself_is_found() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = Layers(2)

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    x, model = torch.randn(3, 4), Whole()
    notes = watched(model, x)
    expected = calls(model, x, notes, training=False)
    assert calls(model.net, x, notes) == expected


class Checkpointed(nn.Module):
    """Every form in which activation checkpointing is written."""

    def __init__(self, kind: str, reentrant: bool | None) -> None:
        super().__init__()
        self.kind, self.reentrant = kind, reentrant
        self.stem, self.shared, self.blocks = nn.Linear(4, 4), Layers(2), nn.ModuleList(Layers(1) for _ in range(3))

    def run(self, function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self.reentrant is None or not self.training:
            return function(x)
        return checkpoint(function, x, use_reentrant=self.reentrant)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        if self.kind == "shared":
            for _ in range(3):
                x = self.run(self.shared, x)
        elif self.kind == "blocks":
            for block in self.blocks:
                x = self.run(block, x)
        elif self.kind == "function":
            for block in self.blocks:
                x = self.run(lambda y, block=block: F.relu(y - block(y) * 0.5), x)
        else:
            x = self.run(self.all, x)
        return x

    def all(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = F.relu(self.shared(block(x)))
        return x


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", ["shared", "blocks", "function", "segment"])
def test_recomputation_makes_the_same_calls(kind: str, reentrant: bool) -> None:
    x = torch.randn(5, 4)
    gradients = []
    for form in (None, reentrant):
        torch.manual_seed(0)
        model = lc.calibrate(Checkpointed(kind, form), [x]).train().requires_grad_(True)
        for ref in quantizers_of(model):
            ref.quantizer.observing = 1
        model(x).square().sum().backward()
        assert active == []
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        assert (gradient is None and other is None) or torch.equal(gradient, other), name


def test_checkpointing_of_other_models_is_as_before() -> None:
    layer = nn.Linear(4, 4)
    for reentrant in (False, True):
        x, other = torch.ones(3, 4, requires_grad=True), torch.ones(3, 4, requires_grad=True)
        layer(x).square().sum().backward()
        checkpoint(layer, other, use_reentrant=reentrant).square().sum().backward()
        assert torch.equal(x.grad, other.grad)  # type: ignore[arg-type]


class OneLine(nn.Module):
    """Noise in the line of another addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x + torch.randn_like(x) if self.training else x)) + (x + 1.0)) + x


class Broken(nn.Module):
    """Graph breaks in the module, in its helper and in a loop, each after a call in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        x = x + 0.1 if self.training else x
        torch._dynamo.graph_break()
        return x + y

    def forward(self, x: Tensor) -> Tensor:
        y = self.add(self.a(x), x)
        y = y + 0.1 if self.training else y
        torch._dynamo.graph_break()
        y = F.relu(y) + self.add(self.b(y), y)
        for _ in range(2):
            y = y - 0.1 if self.training else y
            torch._dynamo.graph_break()
            y = y - x
        return y


def each_layer(model: nn.Module) -> nn.Module:
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.compile(backend="eager")
    return model


def whole(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]


COMPILED: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], nn.Module]]] = {
    "noise": (Noisy, whole),
    "inside": (lambda: nn.Sequential(Noisy()), whole),
    "layers": (lambda: Layers(3), each_layer),
    "pyramid": (Pyramid, whole),
    "one line": (OneLine, whole),
    "graph breaks": (Broken, whole),
    "checkpoint": (lambda: Checkpointed("blocks", False), whole),
}


@pytest.mark.parametrize(("make", "compiled"), COMPILED.values(), ids=COMPILED)
def test_compiled_modules_make_the_same_calls(
    make: Callable[[], nn.Module], compiled: Callable[[nn.Module], nn.Module]
) -> None:
    x, model = torch.randn(3, 4), make()
    support_compilation()
    notes = watched(model, x)
    expected = calls(model, x, notes)
    torch._dynamo.reset()
    model = compiled(model)
    for _ in range(2):
        assert calls(model, x, notes) == expected
    torch._dynamo.reset()


def test_compiled_layers_that_are_skipped_shift_no_others() -> None:
    x, model = torch.randn(3, 4), Layers(3)
    support_compilation()
    notes = watched(model, x)
    torch._dynamo.reset()
    compiled = whole(model)
    for skipped in [(), (1,), (0, 2), (1,)]:
        model.skipped = skipped
        assert calls(compiled, x, notes) == calls(model, x, notes)
    torch._dynamo.reset()


def test_copies_find_calls_and_pickles_count_them() -> None:
    x, model = torch.randn(3, 4), Noisy()
    notes = watched(model, x)
    expected = calls(model, x, notes, training=False)
    assert calls(copy.deepcopy(model), x, notes) == expected
    loaded = pickle.loads(pickle.dumps(model))
    patcher = patcher_of(loaded)
    assert patcher is not None
    assert patcher.index is None
    own = next(iter(patcher.actions.values())).notes  # type: ignore[attr-defined]
    loaded.eval()(x)
    assert own[-1:] == expected[-1:]


def test_an_exception_leaves_no_pass_behind() -> None:
    class Fails(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("no")
            return F.relu(x)

    model = nn.Sequential(nn.Linear(4, 4), Fails())
    notes = watched(model, torch.randn(2, 4))
    with pytest.raises(RuntimeError, match="no"):
        model.train()(torch.randn(2, 4))
    assert active == []
    assert calls(model, torch.randn(2, 4), notes, training=False) == ["0:linear_0_0", "1:relu_0_0"]
