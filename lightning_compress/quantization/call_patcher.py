"""Acting on the function calls that a module makes, without touching its class: plain hooks and a function mode.

A call is told by the name of the function, how many of that name the module has made before in the same call of its
own, and, for a module that its parent calls more than once, in which of these calls. What is to be done is kept in the
module, so that deep copies and pickles go on doing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_KEY = "_quantization_sites"


class CallSite(NamedTuple):
    """One function call inside a module.

    Attributes:
        function: Canonical name, such as ``"relu"`` for ``F.relu``, ``Tensor.relu`` and ``Tensor.relu_``.
        occurrence: Number of calls of that name before, in the same call of the module.
        repeat: Number of calls of the module before, in the same call of its parent.
    """

    function: str
    occurrence: int = 0
    repeat: int = 0


class Action(Protocol):
    """What is done instead of a function call."""

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of the call."""


class CallPatcher:
    """The calls in one module that something is done at.

    Args:
        actions: What is done, by call.
        defaults: What is done at other calls, by function.
    """

    def __init__(
        self, actions: Mapping[CallSite, Action] | None = None, defaults: Mapping[str, Action] | None = None
    ) -> None:
        self.actions = dict(actions or {})
        self.defaults = dict(defaults or {})
        self.repeated: tuple[str, ...] = ()  # child modules that the module calls more than once
        self.is_repeated = False
        self.names = frozenset(call.function for call in self.actions) | frozenset(self.defaults)
        self.counts: dict[str, int] = {}
        self.repeat = -1
        self.modes: list[_Mode] = []

    def begin(self, module: nn.Module) -> None:
        """Starts counting, when the module is called."""
        self.counts = {}
        if self.is_repeated:
            self.repeat += 1
        for name in self.repeated:
            vars(getattr(module, name))[_KEY].repeat = -1

    def handle(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Makes a call, or does what is to be done instead."""
        name = canonical(function)
        if name not in self.names:
            return function(*args, **kwargs)
        args, kwargs = positional(args, kwargs)
        if not is_floating(args):
            return function(*args, **kwargs)
        occurrence = self.counts.get(name, 0)
        self.counts[name] = occurrence + 1
        action = self.actions.get(CallSite(name, occurrence, max(self.repeat, 0)), self.defaults.get(name))
        return function(*args, **kwargs) if action is None else action(module, function, args, kwargs)


class _Mode(TorchFunctionMode):
    """Shows a module's sites the functions that it calls; those of its child modules are theirs."""

    def __init__(self, module: nn.Module, sites: CallPatcher) -> None:
        super().__init__()
        self.module = module
        self.sites = sites

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            return self.sites.handle(self.module, func, args, kwargs or {})


def install_all(model: nn.Module, table: Mapping[str, CallPatcher]) -> None:
    """Puts sites into modules by their names, and empty ones where functions must not be taken for their parent's."""
    modules = dict(model.named_modules())
    everywhere = dict(table)
    for name in table:
        for child, module in modules[name].named_children():
            if not isinstance(module, nn.Identity):
                everywhere.setdefault(f"{name}.{child}".lstrip("."), CallPatcher())
    for name in table:
        if any(call.repeat for call in table[name].actions):
            parent, _, child = name.rpartition(".")
            holder = everywhere.setdefault(parent, CallPatcher())
            holder.repeated = (*holder.repeated, child)
            everywhere[name].is_repeated = True
    for name, sites in everywhere.items():
        install(modules[name], sites)


def install(module: nn.Module, sites: CallPatcher) -> None:
    """Puts sites into a module that has none, and the hooks that enter them."""
    assert _KEY not in vars(module), "one table of sites per module"
    vars(module)[_KEY] = sites
    # Outermost, so that a user's hooks see what the module's own functions see.
    module.register_forward_pre_hook(_enter, prepend=True)
    module.register_forward_hook(_leave, always_call=True)


def uninstall(module: nn.Module) -> None:
    """Takes sites and hooks out of a module, if there are any."""
    if vars(module).pop(_KEY, None) is None:
        return
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_enter, _leave)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def patcher_of(module: nn.Module) -> CallPatcher | None:
    """The sites that a module has."""
    return vars(module).get(_KEY)


# Dynamo of torch 2.14 cannot follow what is done with the name.
@torch.compiler.assume_constant_result
def canonical(function: Any) -> str:
    """One name for a function, its method and its in-place form.

    >>> canonical(torch.Tensor.relu_), canonical(torch.nn.functional.relu), canonical(torch.Tensor.__iadd__)
    ('relu', 'relu', 'add')
    """
    name = getattr(function, "__name__", "").strip("_")
    if name == "get":
        return _PROPERTIES.get(getattr(getattr(function, "__self__", None), "__name__", ""), name)
    return _SAME.get(name, name)


_SAME = {"iadd": "add", "imul": "mul", "concat": "cat", "concatenate": "cat", "rmul": "mul", "radd": "add"}
_PROPERTIES = {"T": "transpose", "mT": "transpose", "H": "transpose", "mH": "transpose", "data": "detach"}


def positional(args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Arguments of a function with the tensors that it computes with in front, however they were given.

    >>> positional((), {"other": 2, "input": 1, "alpha": 3})
    ((1, 2), {'alpha': 3})
    """
    for index, names in enumerate((("input", "tensors", "query"), ("other",))):
        for name in names:
            if name in kwargs and len(args) == index:
                args = (*args, kwargs[name])
                kwargs = {key: value for key, value in kwargs.items() if key != name}
    return args, kwargs


def is_floating(args: Any) -> bool:
    """Whether the first argument is a floating tensor, or a list of them."""
    first = args[0] if args else None
    if isinstance(first, (list, tuple)) and first:
        first = first[0]
    # Batch norm counts its batches with an integer addition.
    return isinstance(first, Tensor) and first.is_floating_point()


def _enter(module: nn.Module, args: Any) -> None:
    if _is_redirected(module):
        return
    sites = vars(module)[_KEY]
    sites.begin(module)
    mode = _Mode(module, sites)
    sites.modes.append(mode)
    mode.__enter__()


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    sites = vars(module)[_KEY]
    if sites.modes and not _is_redirected(module):
        sites.modes.pop().__exit__(None, None, None)


def _is_redirected(module: nn.Module) -> bool:
    """Whether a call of a LightningModule is a wrapper's (DDP), on its way to ``training_step``."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__qualname__", "").startswith("_ForwardRedirection")
