"""Location of a call in the source, in eager and in compiled code."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from types import CodeType, FrameType
from typing import Any

import torch
from torch._dynamo.symbolic_convert import InstructionTranslator
from torch.utils import checkpoint

Location = str
"""Places in the source from a call up to the forward method of its module, the innermost first, joined by slashes."""

_OWN, _TORCH = os.path.dirname(__file__), os.path.dirname(torch.__file__)
_MODULES = os.path.join(_TORCH, "nn", "modules")
# A function under activation checkpointing is located within that function, since it is called from elsewhere when it
# is run again in the backward pass.
_BOUNDARIES = frozenset(
    {os.path.join(_MODULES, "module.py"), checkpoint.__file__, os.path.join(_OWN, "recomputation.py")}
)
# Library code between two places differs between eager and compiled runs. The code is stored to keep its id unique.
_places: dict[tuple[int, int], tuple[str, CodeType]] = {}


def location_of(frame: FrameType) -> Location:
    """Return the location of a call that is made in a frame."""
    return _joined(_eager(frame))


@torch.compiler.assume_constant_result
def compiled_location() -> Location:
    """Return the location of the call that ``torch.compile`` is tracing.

    It is found once for each graph, and a constant of it: compiled steps compute nothing for it.
    """
    return _joined(_traced())


def _eager(frame: FrameType | None) -> Iterator[tuple[CodeType, str]]:
    while frame is not None:
        code, offset = frame.f_code, frame.f_lasti
        if (id(code), offset) not in _places:
            _places[id(code), offset] = _place(code, _positions(code, offset)), code
        yield code, _places[id(code), offset][0]
        frame = frame.f_back


def _traced() -> Iterator[tuple[CodeType, str]]:
    translator: Any = InstructionTranslator.current_tx().output.current_tx
    while translator is not None:
        code, instruction = translator.f_code, translator.current_instruction
        yield code, _place(code, instruction.positions or (instruction.offset,))
        translator = getattr(translator, "parent", None)


def _positions(code: CodeType, offset: int) -> Iterable[int | None]:
    """Return first and last line and column of an instruction; in Python 3.10, its offset."""
    of_all = getattr(code, "co_positions", None)
    return (offset,) if of_all is None else next(islice(of_all(), offset // 2, None))


def _place(code: CodeType, positions: Iterable[int | None]) -> str:
    """Return the place of an instruction; an empty string in functions of torch, and in this package."""
    folder, _, file = code.co_filename.rpartition(os.sep)
    if folder == _OWN or (f"{folder}{os.sep}".startswith(f"{_TORCH}{os.sep}") and folder != _MODULES):
        return ""
    return ":".join([file, *map(str, positions)])


def _joined(places: Iterator[tuple[CodeType, str]]) -> Location:
    found = []
    for code, place in places:
        if code.co_filename in _BOUNDARIES:
            break
        if place:
            found.append(place)
    return "/".join(found)
