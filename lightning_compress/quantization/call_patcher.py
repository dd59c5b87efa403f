"""Patching of the function calls that a module makes, without touching its class: hooks and a function mode.

A call is identified by its position in the source and by the forward pass in which it is made, as one traced run has
shown them. Names count calls in the order of that run. Calls that only training makes (noise, stochastic depth,
auxiliary heads), layers that are skipped, and recomputation in the backward pass shift nothing. The actions are stored
in the module, so that deep copies and pickles keep them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from lightning_compress.quantization.call_location import Location, compiled_location, location_of
from lightning_compress.quantization.forward_pass import ForwardPass, PassPath, active
from lightning_compress.quantization.function_names import is_floating, name_of_call, positional

_KEY = "_call_patcher"


class CallSite(NamedTuple):
    """One function call inside a module, numbered in the order of a traced run.

    Attributes:
        function: Canonical name, for example ``"relu"`` for ``F.relu``, ``Tensor.relu`` and ``Tensor.relu_``.
        occurrence: Number of calls of that name before, in the same forward pass of the module.
        repeat: Number of forward passes of the module before, in the same run of the model.
    """

    function: str
    occurrence: int = 0
    repeat: int = 0


class Position(NamedTuple):
    """Position of a call within a forward pass of its module.

    Attributes:
        location: Position in the source.
        last_child: Module that was called last before; tells the iterations of a loop over modules.
        number: Number of calls before at this location and after that module.
        number_here: Number of calls before at this location.
    """

    location: Location
    last_child: str
    number: int
    number_here: int

    @classmethod
    def of(cls, current: ForwardPass, function: str, frame: FrameType | None) -> Position:
        """Locate a call of a function in the current pass, and count it; without a frame, it is being compiled."""
        location = compiled_location() if frame is None else location_of(frame)
        child = current.last_child
        number = current.count(function, location, child)
        return cls(location, child, number, current.count(function, location))


class CallIndex:
    """Calls of one module in a traced run: which pass, and which call in the source, has which number."""

    def __init__(self) -> None:
        self.repeats: dict[PassPath, int] = {}
        self._calls: dict[tuple[int, str], list[tuple[Position, int]]] = {}
        self._found: dict[tuple[int, str, Position], int | None] = {}

    def add(self, path: PassPath, position: Position, call: CallSite) -> None:
        """Add a call of the traced run."""
        self.repeats[path] = call.repeat
        calls = self._calls.setdefault((call.repeat, call.function), [])
        if (position, call.occurrence) not in calls:  # a run may call the model several times
            calls.append((position, call.occurrence))

    def find(self, current: ForwardPass, function: str, position: Position) -> CallSite | None:
        """Return the traced call that a call corresponds to; ``None`` if the traced run did not make it."""
        repeat = self._repeat(current.path, current.repeat)
        occurrence = self._occurrence(repeat, function, *position)
        return None if occurrence is None else CallSite(function, occurrence, repeat)

    # Both results are constants of a compiled graph: they follow from the source, and from how often it is passed.
    @torch.compiler.assume_constant_result
    def _repeat(self, path: PassPath, counted: int) -> int:
        """Return the number of the traced pass, also if the model was entered by another module than in the trace."""
        if path in self.repeats:
            return self.repeats[path]
        if len(set(self.repeats.values())) == 1:
            return next(iter(self.repeats.values()))
        shared = {_common_suffix(traced, path): repeat for traced, repeat in reversed(self.repeats.items())}
        longest = max(shared, default=0)
        return shared[longest] if longest else counted

    @torch.compiler.assume_constant_result
    def _occurrence(self, repeat: int, function: str, *position: Any) -> int | None:
        key = repeat, function, Position(*position)
        if key not in self._found:  # every step asks the same again
            self._found[key] = self._search(*key)
        return self._found[key]

    def _search(self, repeat: int, function: str, position: Position) -> int | None:
        calls = self._calls.get((repeat, function), [])
        traced = [entry for entry in calls if _is_prefix(entry[0].location, position.location)]
        # At a place in the source that is passed once nothing else can be meant. In a loop the module that was called
        # last tells the iterations apart, also if some are skipped; without one they are counted.
        after_same = [entry for entry in traced if entry[0].last_child == position.last_child]
        for entries, number in (
            (traced if len(traced) == 1 else [], 0),
            (after_same, position.number),
            ([] if after_same else traced, position.number_here),
        ):
            if number < len(entries):
                return entries[number][1]
        return None


def _is_prefix(first: Location, second: Location) -> bool:
    """Return True if two locations are the same as far as both go: checkpointing hides the frames around a function."""
    return all(a == b for a, b in zip(first.split("/"), second.split("/"), strict=False))


def _common_suffix(first: PassPath, second: PassPath) -> int:
    length = 0
    while length < min(len(first), len(second)) and first[-1 - length] == second[-1 - length]:
        length += 1
    return length


class Action(Protocol):
    """Replacement of a function call."""

    def __call__(self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Return the result of the call."""


class CallPatcher:
    """Table of the patched calls of one module.

    Args:
        actions: Actions by call.
        defaults: Actions at all other calls of a function, by function name.

    Attributes:
        name: Module name.
        index: Calls of the traced run; without one, calls are counted in the order in which they are made.
    """

    def __init__(
        self, actions: Mapping[CallSite, Action] | None = None, defaults: Mapping[str, Action] | None = None
    ) -> None:
        self.actions = dict(actions or {})
        self.defaults = dict(defaults or {})
        self.name = ""
        self.index: CallIndex | None = None
        self.names = frozenset(call.function for call in self.actions) | frozenset(self.defaults)
        self.modes: list[PatchMode] = []

    def handle(
        self, module: nn.Module, function: Callable[..., Any], args: Any, kwargs: Any, frame: FrameType | None
    ) -> Any:
        """Call the function, or the action of this call instead."""
        name = name_of_call(function, args, kwargs)
        if name not in self.names:
            return function(*args, **kwargs)
        args, kwargs = positional(args, kwargs)
        if not is_floating(args):
            return function(*args, **kwargs)
        action = self.action_at(name, self._identify(name, frame))
        return function(*args, **kwargs) if action is None else action(module, function, args, kwargs)

    def action_at(self, name: str, call: CallSite | None) -> Action | None:
        """Return the action at a call of a function; ``None`` stands for a call that the traced run did not make."""
        default = self.defaults.get(name)
        return default if call is None else self.actions.get(call, default)

    def _identify(self, name: str, frame: FrameType | None) -> CallSite | None:
        current = active[-1]
        if self.index is None:
            return CallSite(name, current.count(name), current.repeat)
        return self.index.find(current, name, Position.of(current, name, frame))

    def __getstate__(self) -> dict[str, Any]:
        """Pickle without the index: offsets of instructions are another interpreter's own matter."""
        return {**vars(self), "index": None, "modes": []}

    def __deepcopy__(self, memo: dict[int, Any]) -> CallPatcher:
        """Copy with the index."""
        copied = type(self).__new__(type(self))
        memo[id(self)] = copied
        state = {name: value for name, value in vars(self).items() if name not in ("index", "modes")}
        vars(copied).update(deepcopy(state, memo), index=self.index, modes=[])
        return copied


class PatchMode(TorchFunctionMode):
    """Passes the function calls of a module to its patcher; those of child modules go to their own."""

    def __init__(self, module: nn.Module, patcher: CallPatcher) -> None:
        super().__init__()
        self.module = module
        self.patcher = patcher

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        frame = None if torch.compiler.is_dynamo_compiling() else sys._getframe(1)
        # The functions that an action calls itself must not be patched again.
        with torch._C.DisableTorchFunction():
            return self.patcher.handle(self.module, func, args, kwargs or {}, frame)


def install_all(
    model: nn.Module,
    table: Mapping[str, CallPatcher],
    index: Mapping[str, CallIndex] | None = None,
    called: Iterable[str] | None = None,
) -> None:
    """Install patchers in the modules of a model.

    Args:
        model: Model without patchers.
        table: Patchers by module name.
        index: Calls of a traced run by module name.
        called: Names of the modules that the traced run called. They all get a patcher, since a mode is active during
            the calls of child modules too, and passes are numbered through all modules around a module.
    """
    modules = dict(model.named_modules())
    around = {".".join(name.split(".")[:depth]) for name in table for depth in range(name.count(".") + 2)} | {""}
    first_names = {module: name for name, module in modules.items()}  # a module may stand in several places
    children = {first_names[child] for name in (*table, *around) for child in modules[name].children()}
    for name in sorted({*table, *around, *children, *(called or ())}):
        if name in table or is_patchable(modules[name]):
            patcher = table.get(name) or CallPatcher()
            patcher.name = name
            patcher.index = None if index is None else index.get(name, CallIndex())
            install(modules[name], patcher)


def install(module: nn.Module, patcher: CallPatcher) -> None:
    """Install a patcher in a module that has none, and the hooks that enter its mode."""
    assert _KEY not in vars(module), "one patcher per module"
    vars(module)[_KEY] = patcher
    # Outermost, so that functions called in hooks of the user are counted no matter when these are registered.
    module.register_forward_pre_hook(_enter, prepend=True)
    module.register_forward_hook(_leave, always_call=True)


def replace_patcher(module: nn.Module, patcher: CallPatcher) -> None:
    """Give a module another patcher in place of its own."""
    vars(module)[_KEY] = patcher


def uninstall(module: nn.Module) -> None:
    """Remove the patcher and its hooks from a module, if there is one."""
    if vars(module).pop(_KEY, None) is None:
        return
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in (_enter, _leave)]:
            del hooks[key]
            module._forward_hooks_always_called.pop(key, None)


def is_patchable(module: nn.Module) -> bool:
    """Return True if a module makes calls that can be seen: an identity makes none, TorchScript hides them."""
    return not isinstance(module, (nn.Identity, torch.jit.ScriptModule))


def patcher_of(module: nn.Module) -> CallPatcher | None:
    """Return the patcher of a module, if there is one."""
    return vars(module).get(_KEY)


def _enter(module: nn.Module, args: Any) -> None:
    if _is_redirected(module):
        return
    patcher = vars(module)[_KEY]
    active.append(ForwardPass(patcher.name, module, active[-1] if active else None))
    mode = PatchMode(module, patcher)
    patcher.modes.append(mode)
    mode.__enter__()


def _leave(module: nn.Module, args: Any, output: Any) -> None:
    patcher = vars(module)[_KEY]
    if patcher.modes and not _is_redirected(module):
        patcher.modes.pop().__exit__(None, None, None)
        active.pop()


@contextmanager
def unwound() -> Iterator[None]:
    """Leave the passes that an exception has interrupted inside the context: ``torch.export`` runs no hooks then."""
    num_before = len(active)
    try:
        yield
    finally:
        while len(active) > num_before:
            patcher = patcher_of(active.pop().module)
            assert patcher is not None
            patcher.modes.pop().__exit__(None, None, None)


def _is_redirected(module: nn.Module) -> bool:
    """Return True in a call of a LightningModule that its strategy (DDP) redirects to ``training_step``."""
    forward = vars(module).get("forward")
    return forward is not None and getattr(forward, "__qualname__", "").startswith("_ForwardRedirection")
