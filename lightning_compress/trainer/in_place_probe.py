"""Passes of a model in training that cannot be copied, after which it is as before."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from typing_extensions import override

from lightning_compress.sharded_modules import reshard
from lightning_compress.trainer.probe import TrainingProbe, ignore

_CONTAINERS = (list, dict, set)
_INTERNAL = frozenset(vars(nn.Module())) - {"training"}


class InPlaceProbe(TrainingProbe):
    """Run the training step of a model itself, whose parameters are sharded, and undo what else the step has changed.

    Modes, buffers, metrics, numbers and the contents of lists and dicts are restored, the RNG too, and nothing is
    logged; other objects that belong to the model keep their changes. Gradients must be disabled.
    """

    keeps = "\0"
    """Prefix of the names of buffers that are not restored."""

    @override
    def _prepare(self, pl_module: LightningModule, full: Callable[[Tensor], Tensor]) -> LightningModule:
        return pl_module

    @override
    def step(self) -> Any:
        """Run ``training_step`` on the batch, and return its output."""
        with undone(self.model, self.keeps):
            return super().step()

    @override
    def run(self) -> Any:
        """Return the output of the deployable submodule for its inputs."""
        with undone(self.model, self.keeps):
            return super().run()


@contextmanager
def undone(pl_module: LightningModule, keeps: str) -> Iterator[None]:
    """Restore a model, except for its parameters, after the passes inside the context.

    Args:
        pl_module: The model.
        keeps: Prefix of the names of buffers that are not restored.
    """
    modules = list(pl_module.modules())
    buffers = [
        (buffer, buffer.clone())
        for module in modules
        for name, buffer in module._buffers.items()
        if buffer is not None and not name.startswith(keeps)
    ]
    attributes = [(module, {name: (v, _content_of(v)) for name, v in _attributes(module)}) for module in modules]
    vars(pl_module).update(log=ignore, log_dict=ignore)
    try:
        yield
    finally:
        for module, before in attributes:
            for name in [name for name, _ in _attributes(module) if name not in before]:
                del vars(module)[name]
            for name, (value, content) in before.items():
                vars(module)[name] = _with_content(value, content)
        with torch.no_grad():
            for buffer, values in buffers:
                buffer.copy_(values)
        reshard(pl_module)


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    """Return the attributes of a module that are not parameters, buffers, submodules and hooks."""
    return [(name, value) for name, value in vars(module).items() if name not in _INTERNAL]


def _content_of(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone() if value.is_leaf else None
    return copy.copy(value) if type(value) in _CONTAINERS else None


def _with_content(value: Any, content: Any) -> Any:
    """Give an object the content again that it had; return the object."""
    if content is None:
        return value
    if isinstance(value, Tensor):
        value.detach().copy_(content)
        return value
    value.clear()
    value.extend(content) if isinstance(value, list) else value.update(content)
    return value
