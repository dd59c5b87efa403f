"""Active forward passes of patched modules, by which function calls are identified."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint

PassPath = tuple[tuple[str, int], ...]
"""Names of nested modules, each with the number of its pass within the pass before."""

Location = tuple[tuple[str, int], ...]
"""Position of a call in the source: code name and instruction of each frame, the innermost first."""

_BOUNDARIES: frozenset[CodeType] = frozenset(
    {nn.Module._call_impl.__code__, nn.Module._wrapped_call_impl.__code__}  # type: ignore[attr-defined]
)


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
            # Paths are not needed in compiled modules, and strings in tuples would be guarded.
            if not torch.compiler.is_compiling():
                self.path = (*parent.path, (name, _count(parent._calls, ("child", name))))
                parent.last_child = name

    def count(self, *key: Any) -> int:
        """Return the number of earlier calls with the same key in this pass, and count this one."""
        return _count(self._calls, key)


def _count(calls: dict[Any, int], key: Any) -> int:
    number = calls.get(key, 0)
    calls[key] = number + 1
    return number


# Files whose frames are between a function under activation checkpointing and the module that it belongs to.
_CHECKPOINTING = frozenset({checkpoint.__file__, str(Path(__file__).with_name("recomputation.py"))})

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


def location_of(frame: FrameType | None) -> Location:
    """Return where in the source a call is made, from its frame up to the forward method of the module.

    Names of code and offsets of instructions, no files and lines: they are the same on all ranks. A function that is
    run under activation checkpointing is located within that function, since it is called from elsewhere when it is
    run again in the backward pass.
    """
    location: list[tuple[str, int]] = []
    while frame is not None and frame.f_code not in _BOUNDARIES and frame.f_code.co_filename not in _CHECKPOINTING:
        location.append((frame.f_code.co_name, frame.f_lasti))
        frame = frame.f_back
    return tuple(location)
