"""Compilation of patched modules by ``torch.compile``."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType

from torch._dynamo.eval_frame import skip_code

from lightning_compress.quantization import (
    call_location,
    call_patcher,
    fake_quantized_call,
    forward_pass,
    function_names,
    quantizer,
)


def support_compilation() -> None:
    """Let Dynamo compile quantizers and patchers as part of a module only, not by themselves.

    Around a graph break, it would compile each function that the eager part of the module calls: in a graph of its own
    that is used for all calls alike, where the call is not told. A second call does nothing.
    """
    for module in (call_location, call_patcher, fake_quantized_call, forward_pass, function_names, quantizer):
        for code in _codes_of(module):
            skip_code(code)


def _codes_of(module: ModuleType) -> Iterator[CodeType]:
    for value in vars(module).values():
        for member in vars(value).values() if isinstance(value, type) else (value,):
            function = getattr(member, "__func__", member)  # of a class method
            if isinstance(function, FunctionType) and function.__module__ == module.__name__:
                yield from _with_nested(function.__code__)


def _with_nested(code: CodeType) -> Iterator[CodeType]:
    """Yield a code object and those of its comprehensions and inner functions."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _with_nested(constant)
