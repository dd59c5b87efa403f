"""Identification and replacement of function calls; nothing else about a module changes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from lightning_compress.quantization.call_patcher import (
    CallPatcher,
    CallSite,
    install,
    install_all,
    patcher_of,
    uninstall,
)
from lightning_compress.quantization.function_names import canonical


class Note:
    """Action that records its call and shifts the result."""

    def __init__(self, name: str, shift: float = 0.0) -> None:
        self.name, self.shift = name, shift

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        vars(module).setdefault("notes", []).append(self.name)
        return function(*args, **kwargs) + self.shift


def noted(module: nn.Module, *calls: CallSite) -> nn.Module:
    install_all(module, {"": CallPatcher({call: Note(str(i)) for i, call in enumerate(calls)})})
    return module


def notes(module: nn.Module) -> list[str]:
    return vars(module).pop("notes", [])


class Functional(nn.Module):
    """ReLU and its in-place form, an in-place addition, a concatenation, and a batch norm that counts batches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x)
        y += x
        y = self.norm(y).relu_()
        return torch.cat([y, torch.add(x, 1.0)], dim=1)


CALLS = [CallSite("relu"), CallSite("relu", 1), CallSite("add"), CallSite("add", 1), CallSite("cat")]


def test_functions_methods_and_operators_have_one_name() -> None:
    assert {canonical(f) for f in (F.relu, torch.relu, Tensor.relu, Tensor.relu_, torch.relu_)} == {"relu"}
    assert {canonical(f) for f in (torch.add, Tensor.__add__, Tensor.__iadd__, Tensor.__radd__, Tensor.add_)} == {"add"}
    assert {canonical(f) for f in (torch.cat, torch.concat)} == {"cat"}


@pytest.mark.parametrize("training", [True, False])
def test_calls_are_counted_by_name_without_the_batch_counter_of_the_norm(training: bool) -> None:
    module = noted(Functional(), *CALLS).train(training)
    module(torch.randn(3, 4))
    assert notes(module) == ["0", "2", "1", "3", "4"]
    module(torch.randn(3, 4))
    assert notes(module) == ["0", "2", "1", "3", "4"]


def test_calls_on_integer_tensors_are_not_counted() -> None:
    class Counting(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            count = torch.zeros(1, dtype=torch.long)
            count += 1
            return torch.add(x, count)

    module = Counting()
    install(module, CallPatcher({CallSite("add"): Note("add", 5.0)}))
    assert module(torch.ones(2)).tolist() == [7, 7]


class Shared(nn.Module):
    """ReLU module that is called twice, as in torchvision."""

    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.relu(x) - 1)


def test_a_module_called_twice_has_actions_for_each_pass() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Shared()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = Outer()
    table = {
        "inner.relu": CallPatcher({CallSite("relu", 0, 0): Note("first", 10.0), CallSite("relu", 0, 1): Note("second")})
    }
    install_all(model, table)
    for _ in range(2):
        assert model(torch.zeros(1)).item() == 9
        assert notes(model.inner.relu) == ["first", "second"]


class DropPath(nn.Module):
    """Stochastic depth with a product in training only, in the module of the residual addition."""

    def forward(self, x: Tensor) -> Tensor:
        kept = x * torch.ones_like(x).bernoulli_(0.5).div_(0.5) if self.training else x
        return kept + x


@pytest.mark.parametrize("training", [True, False])
def test_calls_in_training_only_do_not_shift_other_functions(training: bool) -> None:
    module = noted(DropPath(), CallSite("add")).train(training)
    module(torch.ones(2))
    assert notes(module) == ["0"]


def test_functions_of_children_are_not_counted_for_the_parent() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(nn.ReLU()))
    install_all(model, {"": CallPatcher({CallSite("relu"): Note("parent")})})
    model(torch.ones(2))
    assert notes(model) == []


def test_hooks_of_the_user_keep_working() -> None:
    model, seen = Functional(), []
    model.register_forward_pre_hook(lambda m, args: (args[0].relu() - 1,))
    model.register_forward_hook(lambda m, args, output: seen.append(output.relu()) or output * 2)
    noted(model, *CALLS)
    model.register_forward_hook(lambda m, args, output: output + 1)
    plain = Functional()
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model(x), plain(x.relu() - 1) * 2 + 1)
    assert len(seen) == 1


@pytest.mark.parametrize("earlier", [True, False])
def test_functions_in_hooks_of_the_user_are_counted_in_any_order_of_registration(earlier: bool) -> None:
    model = nn.ReLU()
    for registers in (earlier, not earlier):
        if registers:
            model.register_forward_pre_hook(lambda m, args: (args[0].relu(),))
        else:
            noted(model, CallSite("relu"), CallSite("relu", 1))
    model(torch.ones(2))
    assert notes(model) == ["0", "1"]


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.sum() < 0:
            raise RuntimeError("no")
        return x.relu() + 1


def test_an_exception_leaves_no_mode_behind() -> None:
    model = nn.Sequential(Fails())
    install_all(
        model, {"": CallPatcher({CallSite("add"): Note("outer")}), "0": CallPatcher({CallSite("relu"): Note("0")})}
    )
    for _ in range(3):
        with pytest.raises(RuntimeError, match="no"):
            model(torch.full((2,), -1.0))
        assert _get_current_function_mode_stack() == []
    model(torch.ones(2))
    assert notes(model[0]) == ["0"]
    assert _get_current_function_mode_stack() == []


def test_an_exception_in_a_hook_of_the_user_leaves_no_mode_behind() -> None:
    model = noted(Functional(), *CALLS)

    def fail(*args: Any) -> None:
        raise RuntimeError("hook")

    for register in (model.register_forward_pre_hook, model.register_forward_hook):
        handle = register(fail)
        with pytest.raises(RuntimeError, match="hook"):
            model(torch.ones(3, 4))
        handle.remove()
        assert _get_current_function_mode_stack() == []


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["copy", "pickle"])
def test_copies_have_the_same_actions_and_their_own_patchers(copied: Callable) -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    install_all(model, {"1": CallPatcher({CallSite("relu"): Note("relu", 5.0)})})
    twin = copied(model)
    x = torch.randn(2, 3)
    assert torch.equal(twin(x), model(x))
    assert patcher_of(twin[1]) is not patcher_of(model[1])
    assert notes(twin[1]) == notes(model[1]) == ["relu"]


def test_uninstalling_removes_everything() -> None:
    model = Functional()
    before = {name: value for name, value in vars(model).items() if not name.startswith("_forward")}
    install(model, CallPatcher({CallSite("relu"): Note("0")}))
    uninstall(model)
    uninstall(model)
    assert {name: value for name, value in vars(model).items() if not name.startswith("_forward")} == before
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not model._forward_hooks_always_called
    model(torch.ones(3, 4))
    assert notes(model) == []


class Adds:
    """Action that Dynamo can trace."""

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return function(*args, **kwargs) + 1


def test_one_graph_when_compiled() -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared = Shared()
            self.linear = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.shared(F.relu(self.linear(x)) + x)

    # Inside another module: hooks of the outermost module run outside of the graph, where its mode would also count
    # the functions that the "eager" backend calls (Inductor calls none).
    model = nn.Sequential(Nested())
    shared = CallPatcher({CallSite("relu", 0, 0): Adds(), CallSite("relu", 0, 1): Adds()})
    install_all(model, {"0": CallPatcher({CallSite("relu"): Adds(), CallSite("add"): Adds()}), "0.shared.relu": shared})
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    for _ in range(2):
        x = torch.randn(2, 3)
        torch.testing.assert_close(compiled(x), model(x))
    torch._dynamo.reset()
