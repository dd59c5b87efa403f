"""Copies of the user's modules, without the run around them and without autograd graphs."""

from __future__ import annotations

import contextlib
import copy
import copyreg
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.jit import ScriptModule
from torch.utils.data import DataLoader, Dataset

from lightning_compress.arguments import reason

AnyModule = TypeVar("AnyModule", bound=nn.Module)
Memo = dict[int, Any]

_IMMUTABLE = {
    type(None), bool, int, float, str, bytes, type, weakref.ref, types.FunctionType, types.BuiltinFunctionType,
}  # fmt: skip
_CONTAINERS = (dict, list, tuple, set, frozenset, types.MethodType)
# By name, as these packages take seconds to import and need not be installed.
_RUN_PACKAGES = ("lightning", "pytorch_lightning", "lightning_fabric", "wandb")
_RUN_CLASSES = ("Trainer", "Fabric", "Strategy", "LightningDataModule", "Logger", "Run")


def copy_module(module: AnyModule, memo: Memo | None = None) -> AnyModule:
    """Copy a module for a pass, a removal or an export that must leave the original unchanged.

    Parameters, buffers, submodules, hooks and other attributes are deep copies; shared tensors stay shared. Hooks and
    other functions that refer to the module by a variable refer to the copy instead. Tensors with an autograd graph
    (features kept for logging, weights computed by hooks) are detached. Other objects are referred to, not copied, if
    they belong to the run or to its data (Trainer, Fabric, loggers, data modules, data loaders, datasets), or if they
    cannot be copied (locks, thread pools, open files, generators, and objects that contain one). The copy of a
    LightningModule is not attached to a Trainer, and hooks of ``wandb.watch`` are left out, since they would log its
    passes, or fail after the end of the run.

    Args:
        module: The module.
        memo: Copies of objects by their ``id``, as for :func:`copy.deepcopy`.

    Returns:
        The copy, in the same mode.

    Raises:
        ValueError: If a submodule, parameter or buffer cannot be copied.

    >>> import torch
    >>> linear = nn.Linear(2, 1)
    >>> linear.last_output = linear(torch.ones(2))
    >>> copy_module(linear).last_output.requires_grad
    False
    """
    memo = {} if memo is None else memo
    memo.setdefault(id(memo), [])  # the list in which deepcopy keeps temporary objects alive
    _fill_memo(module, memo)
    error = _copy_into(memo, module)
    if error is not None:
        names = (name for name, value in _attributes(module) if _copy_into(memo, value) is not None)
        raise ValueError(
            f"{type(module).__name__} cannot be copied because of {next(names, 'itself')!r} "
            f"({type(error).__name__}: {reason(error)}): set it to None before, or give its class a __deepcopy__ "
            "method."
        ) from error
    copied = copy.deepcopy(module, memo)  # from the memo
    _rebind_functions_(copied, memo)
    remove_forward_hooks_(copied, lambda hook: is_defined_in(hook, "wandb"))
    return copied


def remove_forward_hooks_(module: nn.Module, select: Callable[[Any], bool]) -> None:
    """Remove the selected forward hooks and forward pre-hooks of a module and its submodules."""
    for child in module.modules():
        for hooks in (child._forward_hooks, child._forward_pre_hooks):
            for key in [key for key, hook in hooks.items() if select(hook)]:
                del hooks[key]
                child._forward_hooks_always_called.pop(key, None)


def is_defined_in(hook: Any, package: str) -> bool:
    """Return True if the function or the class of a hook is defined in a package.

    >>> is_defined_in(nn.functional.relu, "torch")
    True
    """
    return (getattr(hook, "__module__", None) or "").partition(".")[0] == package


def _rebind_functions_(module: nn.Module, memo: Memo) -> None:
    """Let hooks and functions among the attributes refer to what was copied, which deep copies of functions do not."""
    for child in module.modules():
        functions: list[dict[Any, Any]] = [child._forward_hooks, child._forward_pre_hooks, vars(child)]
        for values in functions:
            for key, value in values.items():
                if type(value) in (types.FunctionType, functools.partial):
                    values[key] = _rebound(value, memo, {})


def _rebound(value: Any, memo: Memo, done: Memo) -> Any:
    """Return a function with the variables of its closure, and its defaults, replaced by their copies."""
    if type(value) is functools.partial:
        func = _rebound(value.func, memo, done)
        return value if func is value.func else functools.partial(func, *value.args, **value.keywords)
    if type(value) is not types.FunctionType:
        return memo.get(id(value), value)
    # Others stay the same objects: torch compares activations with its own functions.
    if id(value) in done or not _refers_to_copied(value, memo, set()):
        return done.get(id(value), value)
    cells = tuple(types.CellType() for _ in value.__closure__ or ())
    made = done[id(value)] = types.FunctionType(value.__code__, value.__globals__, value.__name__, closure=cells)
    for cell, old in zip(cells, value.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a variable that is not set yet
            cell.cell_contents = _rebound(old.cell_contents, memo, done)
    made.__defaults__ = tuple(_rebound(each, memo, done) for each in value.__defaults__ or ()) or None
    made.__kwdefaults__ = {k: _rebound(each, memo, done) for k, each in (value.__kwdefaults__ or {}).items()}
    vars(made).update(vars(value))
    made.__qualname__, made.__module__ = value.__qualname__, value.__module__
    return made


def _refers_to_copied(function: types.FunctionType, memo: Memo, seen: set[int]) -> bool:
    """Return True if a function refers to an object that has a copy, perhaps through other functions."""
    seen.add(id(function))
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            values.append(cell.cell_contents)
    inner = [value for value in values if type(value) is types.FunctionType and id(value) not in seen]
    copied = any(memo.get(id(value), value) is not value for value in values)
    return copied or any(_refers_to_copied(value, memo, seen) for value in inner)


def _fill_memo(module: nn.Module, memo: Memo) -> None:
    """Enter the objects that :func:`copy.deepcopy` would copy in another way than :func:`copy_module`."""
    parts = _reachable_parts(module, memo)
    holders = _holders(module, parts)
    pending: list[Any] = [module]
    seen: set[int] = set()
    while pending:
        value = pending.pop()
        if id(value) in seen or id(value) not in parts:
            continue
        seen.add(id(value))
        if id(value) in holders or isinstance(value, _CONTAINERS):
            pending += parts[id(value)]
        # As a whole: a copied queue, whose thread is still that of the original, would be waited for without end.
        elif _copy_into(memo, value) is not None:
            _enter(memo, value, value.detach().clone() if isinstance(value, Tensor) else value)


def _enter(memo: Memo, value: Any, copied: Any) -> None:
    memo[id(value)] = copied
    memo[id(memo)].append(value)


def _copy_into(memo: Memo, value: Any) -> Exception | None:
    """Copy an object and all that it refers to; if that is impossible, leave the memo as it was."""
    size = len(memo)
    try:
        copy.deepcopy(value, memo)
    except Exception as error:
        while len(memo) > size:
            memo.popitem()
        return error
    return None


def _attributes(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield names and values of the attributes of all submodules, and the submodules, innermost first."""
    for name, child in reversed(list(module.named_modules())):
        for attribute, value in (*child._parameters.items(), *child._buffers.items(), *vars(child).items()):
            if attribute != "_modules":
                yield f"{name}.{attribute}".lstrip("."), value
        yield name or type(module).__name__, child


def _reachable_parts(module: nn.Module, memo: Memo) -> dict[int, list[Any]]:
    """Return the objects that each object refers to, by its ``id``, for all that a deep copy reaches.

    Objects with a replacement are entered into the memo, and are left out.
    """
    parts: dict[int, list[Any]] = {}
    pending: list[Any] = [module]
    while pending:
        value = pending.pop()
        if type(value) in _IMMUTABLE or id(value) in parts or id(value) in memo:
            continue
        replacement = _replacement(value)
        if replacement is not None:
            _enter(memo, value, replacement)
        else:
            parts[id(value)] = _parts(value)
            pending += parts[id(value)]
    return parts


def _replacement(value: Any) -> Any:
    """Return the object that takes the place of another one in a copy, or ``None`` for a deep copy."""
    kind = type(value)
    # First of all, since a proxy answers to isinstance like the object behind it: Lightning hands out such a Trainer.
    if issubclass(kind, weakref.ProxyTypes):
        return value
    if issubclass(kind, Tensor):
        return None if value.is_leaf else value.detach().clone()
    if issubclass(kind, nn.Module):
        return None
    is_of_run = any(
        base.__name__ in _RUN_CLASSES and base.__module__.partition(".")[0] in _RUN_PACKAGES for base in kind.__mro__
    )
    return value if is_of_run or issubclass(kind, (DataLoader, Dataset, types.ModuleType)) else None


def _parts(value: Any) -> list[Any]:
    """Return the objects that :func:`copy.deepcopy` copies to copy another one; none where that is not its own way."""
    kind = type(value)
    if issubclass(kind, (Tensor, ScriptModule)):
        return []
    if kind in (dict, OrderedDict):
        return [*value, *value.values()]
    if kind in (list, tuple):
        return list(value)
    if kind is types.MethodType:
        return [value.__self__]
    if issubclass(kind, type):
        return []
    if hasattr(kind, "__deepcopy__"):
        return [*vars(value).values()] if issubclass(kind, nn.Module) else []
    try:
        reduced = copyreg.dispatch_table.get(kind, lambda value: value.__reduce_ex__(4))(value)
        _, args, state, items, pairs = (*reduced, None, None, None)[:5]
    except Exception:
        return []
    return [*(args or ()), state, *(items or ()), *chain.from_iterable(pairs or ())]


def _holders(module: nn.Module, parts: dict[int, list[Any]]) -> set[int]:
    """Return the ``id`` of all modules and parameters, and of objects from which one can be reached."""
    users: dict[int, list[int]] = {}
    pending = [id(module)]
    for user, values in parts.items():
        for value in values:
            users.setdefault(id(value), []).append(user)
            if issubclass(type(value), (nn.Module, nn.Parameter)):
                pending.append(id(value))
    holders: set[int] = set()
    while pending:
        holder = pending.pop()
        if holder not in holders:
            holders.add(holder)
            pending += users.get(holder, [])
    return holders
