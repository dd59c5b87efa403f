"""Transfer of optimizer state to a model with fewer channels."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor
from torch.optim import Optimizer

from lightning_compress.channels.removal_log import RemovalLog


def carry_optimizer_state(old: Optimizer, new: Optimizer, log: RemovalLog) -> None:
    """Copy the state of the remaining channels to an optimizer of the smaller model.

    Momentum and other state of a parameter's shape lose the entries of removed channels; step counters are copied.
    Learning rates and other options stay those of ``new``.

    Args:
        old: Optimizer of the model before :func:`lightning_compress.shrink` or ``log.replay_``.
        new: Optimizer of the same class of the model afterwards; its state is replaced.
        log: Log of the removal, from the same process, since it identifies parameters by object.

    Raises:
        ValueError: If the optimizers are of different classes, hold parameters that are unknown to the log or do not
            fit it, or keep state of another shape than the parameter's, as Adafactor does. ``new`` is then unchanged.

    >>> import torch
    >>> import lightning_compress as lc
    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    >>> old = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    >>> net(torch.randn(5, 3)).sum().backward()
    >>> old.step()
    >>> for tensor in net[0].parameters():
    ...     _ = torch.nn.init.zeros_(tensor[:3])
    >>> small, log = lc.shrink(net, torch.randn(1, 3))
    >>> new = torch.optim.SGD(small.parameters(), lr=0.1, momentum=0.9)
    >>> lc.carry_optimizer_state(old, new, log)
    >>> new.state[small[0].weight]["momentum_buffer"].shape
    torch.Size([1, 3])
    """
    if type(old) is not type(new):
        raise ValueError(
            f"carry_optimizer_state: state of {type(old).__name__} cannot be used by {type(new).__name__}: create the "
            "new optimizer of the same class."
        )
    parameters = dict(_named_parameters(old, log))
    states = {}
    for name, parameter in _named_parameters(new, log):
        if name not in parameters:
            raise ValueError(f"carry_optimizer_state: the old optimizer does not hold {name!r}.")
        states[parameter] = _carried_state(name, old, parameters[name], parameter, log)
    # Only now, so that an error in any parameter leaves the new optimizer unchanged.
    new.state.update(states)


def _named_parameters(optimizer: Optimizer, log: RemovalLog) -> Iterator[tuple[str, Tensor]]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = log.name_of(parameter)
            if name is None:
                raise ValueError(
                    "carry_optimizer_state: an optimizer holds a parameter that is unknown to the log: shrink or "
                    "replay in this process, and create the optimizer for the resulting model itself, not for a copy."
                )
            yield name, parameter


def _carried_state(name: str, optimizer: Optimizer, old: Tensor, new: Tensor, log: RemovalLog) -> dict[str, object]:
    cut = log.cuts.get(name)
    final_shape = tuple(old.shape) if cut is None else cut.final_shape
    if tuple(new.shape) != final_shape or (cut is not None and tuple(old.shape) != cut.shape):
        raise ValueError(
            f"carry_optimizer_state: {name!r} has shape {tuple(old.shape)} in the old optimizer and "
            f"{tuple(new.shape)} in the new one, which does not match the log."
        )

    def carry(value: object) -> object:
        if not isinstance(value, Tensor):
            return value
        if cut is None or value.numel() == 1:
            return value.clone()
        if value.shape != old.shape:
            raise ValueError(
                f"carry_optimizer_state: {type(optimizer).__name__} keeps state of shape {tuple(value.shape)} for "
                f"{name!r}, from which channels cannot be removed: start with a new optimizer."
            )
        return cut.select(value)

    return {key: carry(value) for key, value in optimizer.state.get(old, {}).items()}
