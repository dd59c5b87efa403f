"""Forward hooks that record the inputs and outputs of modules inside a network."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map_only

from lightning_compress.distillation.batch_formats import named_arguments
from lightning_compress.targets import COMPILED, shorten


class ModuleCall(NamedTuple):
    """One call of a module.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        output: Return value.
        version: Version counter of the first tensor of ``output`` when the module returned it; ``None`` in compiled
            code, or without a tensor.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any
    version: int | None


class FeatureHooks:
    """Forward hooks that record the last call of each of several modules, inside the context of :meth:`record`.

    Args:
        network: Network that contains the modules.
        names: Names of the modules as in ``network.named_modules()``; ``""`` is the network itself.
        owner: Name of the network in error messages, such as ``"teacher"``.

    Raises:
        ValueError: If the network has no module of one of the names.
    """

    # The hook is a plain function that stores the call on the module: a deep copy of network and FeatureHooks records
    # its own calls, where a closure would still write to the original, and torch.compile can trace it.

    def __init__(self, network: nn.Module, names: Sequence[str], *, owner: str) -> None:
        self._owner = owner
        modules = {name.replace(COMPILED, ""): module for name, module in network.named_modules()}
        unknown = [name for name in names if name not in modules]
        if unknown:
            available = [name for name in modules if name]
            raise ValueError(f"The {owner} has no module {unknown[0]!r}: its modules are {shorten(available)}.")
        self._modules = {name: modules[name] for name in names}
        new = [module for module in self._modules.values() if _record_call not in module._forward_hooks.values()]
        for module in new:
            vars(module)[_RECORDING] = False
            module.register_forward_hook(_record_call, with_kwargs=True)
        # Code that was compiled before the hook was registered does not call it.
        if new and "torch._dynamo" in sys.modules:
            torch.compiler.reset()

    def __getitem__(self, name: str) -> ModuleCall:
        """Return the last call of a module.

        Raises:
            ValueError: If the module was not called, or if its output was modified in place afterwards.
        """
        call = vars(self._modules[name]).get(_CALL)
        where = f"{name!r} of the {self._owner}" if name else f"the {self._owner} itself"
        if call is None:
            raise ValueError(f"The forward pass of this step did not call {where}: name a module that it calls.")
        if call.version is not None and _version(call.output) != call.version:
            raise ValueError(
                f"The output of {where} is modified in place later (by an in-place activation or addition): name the "
                "module that modifies it instead."
            )
        return call

    def __contains__(self, name: str) -> bool:
        """Return True if the module was called in the current context."""
        return vars(self._modules[name]).get(_CALL) is not None

    def arguments(self, name: str) -> dict[str, Any]:
        """Return the arguments of the last call of a module by name."""
        call = self[name]
        return named_arguments(self._modules[name], call.args, call.kwargs)

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record calls until the end of the context."""
        for module in self._modules.values():
            vars(module)[_RECORDING] = True
        try:
            yield
        finally:
            # Outputs hold the autograd graph of the step: released here, the graph is freed with the step, and the
            # network can be deep-copied.
            for module in self._modules.values():
                vars(module)[_RECORDING] = False
                vars(module).pop(_CALL, None)


_CALL = "_distillation_call"
# A separate attribute that always exists: compiled code guards on its value, but not on the absence of _CALL.
_RECORDING = "_distillation_recording"


def _record_call(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
    if not getattr(module, _RECORDING):
        return
    version = None
    if torch.compiler.is_compiling():
        # Compiled code does not count its in-place modifications.
        output = tree_map_only(Tensor, torch.clone, output)
    else:
        version = _version(output)
    module.__dict__[_CALL] = ModuleCall(args, kwargs, output, version)


def _version(output: Any) -> int | None:
    tensor = _first_tensor(output)
    return None if tensor is None else tensor._version


def _first_tensor(output: Any) -> Tensor | None:
    """Return a tensor, or the first floating one in a tuple, list or mapping, also in nested ones."""
    if isinstance(output, Tensor):
        return output
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    tensors = (_first_tensor(value) for value in values)
    return next((tensor for tensor in tensors if tensor is not None and tensor.is_floating_point()), None)


def feature_tensor(call: ModuleCall, name: str) -> Tensor:
    """Return the output of a call, or the first tensor in it: the hidden state of a transformer layer or an LSTM.

    Args:
        call: Recorded call.
        name: Name of the module, for the error message.

    Raises:
        ValueError: If the output has no tensor.
    """
    tensor = _first_tensor(call.output)
    if tensor is None:
        raise ValueError(
            f"{name!r} returns {type(call.output).__name__}, not a tensor: name a module inside it that returns one."
        )
    # Under tensor parallelism a rank computes a share of a layer's channels.
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
