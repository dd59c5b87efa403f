"""What an optimizer knows of the channels that stay."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.optim import Optimizer

from lightning_compress.channels.removal_log import RemovalLog


def carry_optimizer_state(old: Optimizer, new: Optimizer, log: RemovalLog) -> None:
    """Gives a new optimizer of the smaller network what the old one knew of the channels that stay.

    Momenta and other state of a parameter's shape lose the removed channels' entries; counters are kept. Learning rates
    and other options stay those of ``new``.

    Args:
        old: An optimizer of the network before :func:`lightning_compress.shrink` or ``log.replay_``.
        new: An optimizer of the network afterwards, of the same class; its state is replaced.
        log: What was removed, from the same process: it knows which parameter is which.

    Raises:
        ValueError: If the optimizers are of different classes, keep state of another shape than the parameter's (as
            Adafactor), or hold parameters that the log does not know or that do not fit it, before anything is changed.
    """
    if type(old) is not type(new):
        raise ValueError(
            f"carry_optimizer_state: a {type(old).__name__} keeps another state than a {type(new).__name__}."
        )
    olds = dict(_named(old, log))
    states = {}
    for name, parameter in _named(new, log):
        if name not in olds:
            raise ValueError(f"carry_optimizer_state: the old optimizer does not hold {name!r}.")
        states[parameter] = _carried(name, old, olds[name], parameter, log)
    new.state.update(states)


def _named(optimizer: Optimizer, log: RemovalLog) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = log.name_of(parameter)
            if name is None:
                raise ValueError(
                    "carry_optimizer_state: an optimizer holds a parameter that the log does not know: shrink or "
                    "replay in this process, and make the optimizer of the result itself, not of a copy."
                )
            yield name, parameter


def _carried(name: str, optimizer: Optimizer, old: Tensor, new: Tensor, log: RemovalLog) -> dict[str, object]:
    cut = log.cuts.get(name)
    left = tuple(old.shape) if cut is None else cut.left
    if tuple(new.shape) != left or (cut is not None and tuple(old.shape) != cut.shape):
        raise ValueError(
            f"carry_optimizer_state: {name!r} is of shape {tuple(old.shape)} in the old optimizer and "
            f"{tuple(new.shape)} in the new one, which the log does not explain."
        )

    def carry(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        if cut is None or value.numel() == 1:
            return value.clone()
        if value.shape != old.shape:
            raise ValueError(
                f"carry_optimizer_state: {type(optimizer).__name__} keeps state of shape {tuple(value.shape)} for "
                f"{name!r}, of which channels are gone and cannot be told apart: begin with a new optimizer."
            )
        return cut.select(value)

    return {key: carry(value) for key, value in optimizer.state.get(old, {}).items()}
