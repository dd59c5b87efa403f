"""Forward hooks of a model that is copied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from lightning_compress.module_copies import is_defined_in


def refuse_bound_hooks(model: nn.Module) -> None:
    """Check that no forward hook refers to modules of the model, which those of a copy would continue to use.

    Bound methods and callable objects are copied with the model, functions are not.

    Raises:
        ValueError: If a hook does.
    """
    kinds = {type(module) for module in model.modules()}
    attributes = {id(value) for module in model.modules() for value in vars(module).values() if _is_container(value)}
    for name, module in model.named_modules():
        for hook in [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]:
            if is_defined_in(hook, "lightning_compress"):
                continue
            if any(type(value) in kinds or id(value) in attributes for value in _references(hook)):
                raise ValueError(
                    f"A forward hook of {name!r} refers to the model by a variable, which a copy of the model does not "
                    "follow: register a bound method instead, or compute the result in forward."
                )


def _references(hook: Callable[..., Any]) -> Iterator[Any]:
    """Yield the objects that a function refers to by its closure and defaults."""
    if not hasattr(hook, "__code__") or hasattr(hook, "__self__"):
        return
    for cell in hook.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # a variable that is not set yet
            continue
    yield from hook.__defaults__ or ()
    yield from (hook.__kwdefaults__ or {}).values()


def _is_container(value: Any) -> bool:
    return isinstance(value, (dict, list, set))
