"""What modules inside a network take and return in a forward pass."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightning_compress.targets import COMPILED, shorten


class ModuleCall(NamedTuple):
    """One call of a module.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        output: What it returned.
        version: How often ``output`` had been changed in place by then; ``None`` in compiled code.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    version: int | None


class FeatureHooks:
    """Keeps the last call of modules, by forward hooks, until it is released.

    The hooks are plain functions that leave the call at the module, so that a deep copy has taps of its own, and so
    that ``torch.compile`` traces them. What has been compiled before does not know of them and is forgotten.

    Args:
        network: Where the modules are.
        names: Their names in it; ``""`` is the network itself.
        whose: What messages call the network.

    Raises:
        ValueError: For a name that is no module of the network.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], *, whose: str) -> None:
        self._whose = whose
        modules = {name.replace(COMPILED, ""): module for name, module in network.named_modules()}
        unknown = [name for name in names if name not in modules]
        if unknown:
            known = [name for name in modules if name]
            raise ValueError(f"The {whose} has no module {unknown[0]!r}: its modules are {shorten(known)}.")
        self._modules = {name: modules[name] for name in names}
        new = [module for module in self._modules.values() if _keep not in module._forward_hooks.values()]
        for module in new:
            vars(module)[_OPEN] = False
            module.register_forward_hook(_keep, with_kwargs=True)
        if new and "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    def __getitem__(self, name: str) -> ModuleCall:
        """The last call of a module.

        Raises:
            ValueError: If it was not called, or if what it returned has been changed in place since.
        """
        call = vars(self._modules[name]).get(_CALL)
        where = f"{name!r} of the {self._whose}" if name else f"the {self._whose} itself"
        if call is None:
            raise ValueError(
                f"The forward pass of this step did not call {where}, so that nothing can be learned from it there: "
                "name a module that it calls."
            )
        if call.version is not None and call.output._version != call.version:
            raise ValueError(
                f"What {where} returns is changed in place later (by an in-place activation or addition): name the "
                "module that does so instead."
            )
        return call

    def __contains__(self, name: str) -> bool:
        """Whether a module has been called."""
        return vars(self._modules[name]).get(_CALL) is not None

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keeps calls until the end of the context, also if it ends with an exception.

        Then they are forgotten, so that no graph outlives its step, and the network can be copied.
        """
        for module in self._modules.values():
            vars(module)[_OPEN] = True
        try:
            yield
        finally:
            for module in self._modules.values():
                vars(module)[_OPEN] = False
                vars(module).pop(_CALL, None)


_CALL = "_distillation_call"
_OPEN = "_distillation_open"  # an attribute of its own, since compiled code does not notice that a name is missing


def _keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    if not getattr(module, _OPEN):
        return
    version = None
    if isinstance(output, Tensor):
        if torch.compiler.is_compiling():
            output = output.clone()  # compiled code does not count what it changes in place
        else:
            version = output._version
    module.__dict__[_CALL] = ModuleCall(args, kwargs, output, version)


def feature(call: ModuleCall, name: str) -> Tensor:
    """The tensor that a tapped module returned.

    Raises:
        ValueError: If it returned something else.
    """
    if not isinstance(call.output, Tensor):
        raise ValueError(
            f"{name!r} returns {type(call.output).__name__}, not a tensor: name a module inside it that returns one."
        )
    return call.output
