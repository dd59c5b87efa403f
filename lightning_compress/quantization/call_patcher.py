"""Patching of the function calls that a module makes, without touching its class: hooks and a function mode.

A call is identified by the name of the function, the number of calls of that name before it in the same forward pass of
the module, and, for a module that its parent calls more than once, the number of the pass. The actions are stored in
the module, so that deep copies and pickles keep them.
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
        function: Canonical name, for example ``"relu"`` for ``F.relu``, ``Tensor.relu`` and ``Tensor.relu_``.
        occurrence: Number of calls of that name before, in the same forward pass of the module.
        repeat: Number of forward passes of the module before, in the same forward pass of its parent.
    """

    function: str
    occurrence: int = 0
    repeat: int = 0


class Action(Protocol):
    """Replacement of a function call."""

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return the result of the call."""


class CallPatcher:
    """Table of the patched calls of one module, with the counters that identify calls.

    Args:
        actions: Actions by call.
        defaults: Actions at all other calls of a function, by function name.
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
        self.modes: list[_PatchMode] = []

    def begin(self, module: nn.Module) -> None:
        """Reset the counters at the start of a forward pass."""
        self.counts = {}
        if self.is_repeated:
            self.repeat += 1
        for name in self.repeated:
            vars(getattr(module, name))[_KEY].repeat = -1

    def handle(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call the function, or the action of this call instead."""
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


class _PatchMode(TorchFunctionMode):
    """Passes the function calls of a module to its patcher; those of child modules go to their own."""

    def __init__(self, module: nn.Module, patcher: CallPatcher) -> None:
        super().__init__()
        self.module = module
        self.patcher = patcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # The functions that an action calls itself must not be patched again.
        with torch._C.DisableTorchFunction():
            return self.patcher.handle(self.module, func, args, kwargs or {})


def install_all(model: nn.Module, table: Mapping[str, CallPatcher]) -> None:
    """Install patchers in the modules of a model.

    Args:
        model: Model without patchers.
        table: Patchers by module name.
    """
    modules = dict(model.named_modules())
    patchers = dict(table)
    # A mode is active during the calls of child modules too: without a mode of its own, a child's functions would be
    # counted as the parent's.
    for name in table:
        for child, module in modules[name].named_children():
            if not isinstance(module, nn.Identity):
                patchers.setdefault(f"{name}.{child}".lstrip("."), CallPatcher())
    # The parent of a repeated module resets its pass number.
    for name in table:
        if any(call.repeat for call in table[name].actions):
            parent, _, child = name.rpartition(".")
            holder = patchers.setdefault(parent, CallPatcher())
            holder.repeated = (*holder.repeated, child)
            patchers[name].is_repeated = True
    for name, patcher in patchers.items():
        install(modules[name], patcher)


def install(module: nn.Module, patcher: CallPatcher) -> None:
    """Install a patcher in a module that has none, and the hooks that enter its mode."""
    assert _KEY not in vars(module), "one patcher per module"
    vars(module)[_KEY] = patcher
    # Outermost, so that functions called in hooks of the user are counted no matter when these are registered.
    module.register_forward_pre_hook(_enter, prepend=True)
    module.register_forward_hook(_leave, always_call=True)


def uninstall(module: nn.Module) -> None:
    """Remove the patcher and its hooks from a module, if there is one."""
    if vars(module).pop(_KEY, None) is None:
        return
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_enter, _leave)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def patcher_of(module: nn.Module) -> CallPatcher | None:
    """Return the patcher of a module, if there is one."""
    return vars(module).get(_KEY)


# Dynamo of torch 2.14 cannot trace the string operations on the name.
@torch.compiler.assume_constant_result
def canonical(function: Any) -> str:
    """Return the common name of a function, its method and its in-place form.

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
    """Move the tensor operands of a call from keyword to positional arguments.

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
    """Return True if the first argument is a floating-point tensor, or a list of them."""
    first = args[0] if args else None
    if isinstance(first, (list, tuple)) and first:
        first = first[0]
    # Batch norm counts its batches with an int64 addition, in training only: it must not shift the counters.
    return isinstance(first, Tensor) and first.is_floating_point()


def _enter(module: nn.Module, args: Any) -> None:
    if _is_redirected(module):
        return
    patcher = vars(module)[_KEY]
    patcher.begin(module)
    mode = _PatchMode(module, patcher)
    patcher.modes.append(mode)
    mode.__enter__()


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    patcher = vars(module)[_KEY]
    if patcher.modes and not _is_redirected(module):
        patcher.modes.pop().__exit__(None, None, None)


def _is_redirected(module: nn.Module) -> bool:
    """Return True in a call of a LightningModule that its strategy (DDP) redirects to ``training_step``."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__qualname__", "").startswith("_ForwardRedirection")
