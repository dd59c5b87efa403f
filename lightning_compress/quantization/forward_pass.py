"""Active forward passes of patched modules, by which function calls are identified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

PassPath = tuple[tuple[str, int], ...]
"""Names of nested modules, each with the number of its pass within the pass before."""


class ForwardPass:
    """One forward pass of a patched module.

    Args:
        name: Module name.
        module: The module.
        parent: Pass in which the module is called; ``None`` for an outermost pass.

    Attributes:
        path: Names and pass numbers of the modules around this pass, and of the module itself.
        repeat: Number of earlier passes of the module within the outermost pass.
        last_child: Name of the module that was called last within this pass.
    """

    def __init__(self, name: str, module: nn.Module, parent: ForwardPass | None) -> None:
        self.name = name
        self.module = module
        self.root: ForwardPass = self if parent is None else parent.root
        self.last_child = ""
        self.repeat = 0
        self.path: PassPath = ((name, 0),)
        self._calls: dict[Any, int] = {}
        if parent is not None:
            self.repeat = _count(self.root._calls, ("pass", name))
            self.path = (*parent.path, (name, _count(parent._calls, ("child", name))))
            parent.last_child = name

    def count(self, *key: Any) -> int:
        """Return the number of earlier calls with the same key in this pass, and count this one."""
        return _count(self._calls, key)


def _count(calls: dict[Any, int], key: Any) -> int:
    number = calls.get(key, 0)
    calls[key] = number + 1
    return number


active: list[ForwardPass] = []
"""Passes that are under way, the outermost first."""


def snapshot(passes: Sequence[ForwardPass]) -> list[ForwardPass]:
    """Return copies of nested passes, with counters of their own."""
    copies = []
    for each in passes:
        copied = object.__new__(ForwardPass)
        vars(copied).update(vars(each), _calls=dict(each._calls))
        copies.append(copied)
        copied.root = copies[0]
    return copies
