"""Recomputation of patched modules in the backward pass, as activation checkpointing does it.

``torch.utils.checkpoint`` runs a function again in the backward pass, when the modules around it are no longer active.
The calls in it are the same calls as in the forward pass only if these passes are resumed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils import checkpoint

from lightning_compress.quantization.call_patcher import PatchMode, patcher_of
from lightning_compress.quantization.forward_pass import ForwardPass, active, snapshot


def support_recomputation() -> None:
    """Let ``torch.utils.checkpoint`` resume the passes of patched modules; for other modules it stays as it is.

    Both forms of checkpointing look up the function that they build on when they are called, so that it does not
    matter how a model imports ``checkpoint``. A second call does nothing.
    """
    if checkpoint.CheckpointFunction is _ResumingCheckpointFunction:
        return
    checkpoint.CheckpointFunction = _ResumingCheckpointFunction  # type: ignore[misc]
    for name in _GENERATORS:
        if hasattr(checkpoint, name):
            setattr(checkpoint, name, _resuming_generator(getattr(checkpoint, name)))


@contextmanager
def resumed(passes: Sequence[ForwardPass]) -> Iterator[None]:
    """Continue within passes that were under way when a snapshot was taken."""
    outside = active[:]
    active[:] = snapshot(passes)  # a copy once more: a function may be run again several times
    module = active[-1].module
    patcher = patcher_of(module)
    assert patcher is not None
    try:
        with PatchMode(module, patcher):
            yield
    finally:
        active[:] = outside


def _resuming(function: Callable[..., Any], *, after_first: bool) -> Callable[..., Any]:
    """Return a function that resumes the present passes, either always or from its second call on."""
    if not active:
        return function
    passes = snapshot(active)
    is_first = after_first

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_first
        if is_first:
            is_first = False
            return function(*args, **kwargs)
        with resumed(passes):
            return function(*args, **kwargs)

    return run


class _ResumingCheckpointFunction(checkpoint.CheckpointFunction):
    """The reentrant form, which runs its function first in the forward pass and then in the backward pass."""

    @classmethod
    def apply(cls, function: Callable[..., Any], *args: Any) -> Any:
        return super().apply(_resuming(function, after_first=True), *args)


_GENERATORS = ("_checkpoint_without_reentrant_generator", "_checkpoint_without_reentrant_generator_impl")


def _resuming_generator(generator: Callable[..., Any]) -> Callable[..., Any]:
    """The form that is not reentrant: its generator gets the function for the backward pass alone."""

    @functools.wraps(generator)
    def resuming(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return generator(_resuming(function, after_first=False), *args, **kwargs)

    return resuming
