"""Networks beside the trained one that are copies of it: targets of Q-learning, momentum encoders, teachers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

Shapes = dict[str, torch.Size]


def shapes_of(module: nn.Module, *, without: str = "") -> Shapes:
    """Return the shapes of a module's parameters by name.

    Args:
        module: The module.
        without: Prefix of the last part of names that are left out.
    """
    parameters = module.named_parameters(remove_duplicate=False)
    return {n: p.shape for n, p in parameters if not without or not n.rpartition(".")[2].startswith(without)}


def find_copies(model: nn.Module, module: str, shapes: Shapes) -> Iterator[tuple[str, nn.Module]]:
    """Yield the networks outside of a submodule that have parameters of the same names and shapes.

    Networks in a list or dict count as well, in which users hide them from the state dict.

    Args:
        model: The model.
        module: Name of the submodule.
        shapes: Shapes of its parameters by name.

    >>> model = nn.ModuleDict({"net": nn.Linear(2, 2), "target": nn.Linear(2, 2), "head": nn.Linear(2, 1)})
    >>> [name for name, _ in find_copies(model, "net", shapes_of(model["net"]))]
    ['target']
    """
    if not module or not shapes:
        return
    own = set(model.get_submodule(module).modules())
    users = {name: value for name, value in vars(model).items() if name not in vars(nn.Module())}
    hidden = [(f"{name}[...]", part) for name, value in users.items() for part in _modules_in(value)]
    for name, part in (*model.named_modules(), *hidden):
        if part not in own and shapes_of(part) == shapes:
            yield name, part


def _modules_in(value: object) -> list[nn.Module]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [part for part in parts if isinstance(part, nn.Module)]
