"""Replacement of the code of functions that are imported already, so that nothing is imported for each mutant."""

from __future__ import annotations

import builtins
import gc
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any


def live_functions(path: str) -> dict[CodeType, list[FunctionType]]:
    """All functions of a file that there are, by their code; equal code of one line is one key."""
    found: dict[CodeType, list[FunctionType]] = {}
    for item in gc.get_objects():
        if isinstance(item, FunctionType) and item.__code__.co_filename == path:
            found.setdefault(item.__code__, []).append(item)
    return found


def swap(old: CodeType, new: CodeType, functions: dict[CodeType, list[FunctionType]]) -> bool:
    """Give functions their code in another version of the file; False if code that runs at import is another."""
    try:
        pairs = list(changed(old, new))
        if not all(is_nested or functions.get(before) for before, _, is_nested in pairs):
            return False
        for before, after, _ in pairs:
            for function in functions.get(before, []):
                function.__code__ = after
    except (NotImplementedError, ValueError):  # at import; another number of free variables
        return False
    return True


def swap_values(module: ModuleType, new: CodeType) -> bool:
    """Run another version of a module beside it, and take over defaults, fields and constants, as far as possible."""
    other = {"__name__": module.__name__, "__file__": module.__file__, "__builtins__": builtins}
    exec(new, other)
    for name, value in vars(module).items():
        if getattr(value, "__module__", None) == module.__name__ and isinstance(value, type):
            for key, member in [*vars(value).items()]:
                _take_over(value, key, member, vars(other.get(name, value)).get(key, member))
        else:
            _take_over(module, name, value, other.get(name, value))
    return True


def _take_over(owner: Any, name: str, old: Any, new: Any) -> None:
    old, new = (getattr(f, "__func__", getattr(f, "fget", f)) for f in (old, new))
    if isinstance(old, FunctionType) and isinstance(new, FunctionType):
        if old.__module__ == new.__module__ and len(old.__code__.co_freevars) == len(new.__code__.co_freevars):
            old.__code__, old.__defaults__, old.__kwdefaults__ = new.__code__, new.__defaults__, new.__kwdefaults__
            _take_over(None, name, getattr(old, "__wrapped__", None), getattr(new, "__wrapped__", None))
    elif isinstance(new, (bool, int, float, tuple, frozenset)) and new != old:
        setattr(owner, name, new)


def changed(old: CodeType, new: CodeType, *, is_nested: bool = False) -> Iterator[tuple[CodeType, CodeType, bool]]:
    """Yield functions with other code, in both versions, and whether a function that is yielded too makes them."""
    if is_own_changed(old, new):
        if not is_function(old):
            raise NotImplementedError("code that runs at import")
        if len(inner(old)) != len(inner(new)):
            return
    for before, after in zip(inner(old), inner(new), strict=True):
        if before != after:
            if is_function(before):
                yield before, after, is_nested
            yield from changed(before, after, is_nested=is_nested or is_function(before))


def is_function(code: CodeType) -> bool:
    return bool(code.co_flags & inspect.CO_OPTIMIZED)


def inner(code: CodeType) -> list[CodeType]:
    return [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def is_own_changed(old: CodeType, new: CodeType) -> bool:
    """True if more than the code of functions in it is another."""

    def own(code: CodeType) -> tuple[Any, ...]:
        constants = [(type(value), value) for value in code.co_consts if not isinstance(value, CodeType)]
        return code.co_code, code.co_names, constants, len(inner(code))

    return own(old) != own(new)


class Loader(importlib.machinery.SourceFileLoader, importlib.abc.MetaPathFinder):
    """Imports one module from other code than its file holds."""

    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        super().__init__(name, str(path))
        self.code = code

    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        return importlib.util.spec_from_file_location(name, self.path, loader=self) if name == self.name else None

    def get_code(self, fullname: str) -> CodeType:
        return self.code
