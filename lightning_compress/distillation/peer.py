"""Two networks that learn from each other."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_map
from typing_extensions import override

from lightning_compress.distillation.batch_formats import logits_of
from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.loss import LogitLoss


class PeerNetwork(FrozenNetwork):
    """A network that is trained along, on labels and on what the student says. Zhang et al. 2018 (arXiv:1706.00384).

    It is no submodule of what is compressed and deployed, and makes its own steps whenever the student's optimizer
    makes one, with an optimizer of the same kind and learning rate. Losses are not scaled in 16-bit precision.

    Args:
        network: The network as it starts.
        **options: As of a frozen network.
    """

    learns = True

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__(network, **options)
        self.network.requires_grad_(True)
        self._optimizer: Optimizer | None = None
        self._stored: Mapping[str, Any] | None = None
        self._said: Tensor | None = None
        self._loss: Tensor | None = None

    @override
    def _identify(self, name: str) -> dict[str, str]:
        return {"name": name, "hash": "learns along"}

    @override
    def __deepcopy__(self, memo: dict[int, Any]) -> PeerNetwork:
        """A peer of its own: whatever is tried with a copy leaves no trace here."""
        made = copy.copy(self)
        memo[id(self)] = made
        made._said = made._loss = made._optimizer = None
        made.network, made.taps = copy.deepcopy((self.network, self.taps), memo)
        return made

    @override
    @contextmanager
    def forward(self, args: Sequence[Any], kwargs: Mapping[str, Any], keys: Tensor | None = None) -> Iterator[Any]:
        self.network.train()
        with self.taps.open():
            args, kwargs = tree_map(self._input, (tuple(args), dict(kwargs)))
            self._said = logits_of(self.network(*args, **kwargs), "peer")
            yield self._said.detach()

    @override
    def accumulate(self, student: Tensor, labels: Tensor | None, losses: Sequence[tuple[float, LogitLoss]]) -> None:
        if labels is None:
            raise ValueError("A peer learns from labels, which the batches do not have.")
        assert self._said is not None
        if self._loss is not None:
            self._loss.backward()  # of a batch after which no step was made
        loss = F.cross_entropy(self._said.float(), labels)
        for weight, each in losses:
            loss = loss + weight * each(self._said, student.detach(), labels)
        self._loss, self._said = loss, None

    @override
    def step(self, student: nn.Module, optimizer: Optimizer) -> None:
        if self._loss is None:
            return
        mine = self._optimizer or self._start(optimizer)
        self._loss.backward()
        self._loss = None
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        for parameter in self.network.parameters() if ranks > 1 else ():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad.div_(ranks))
        for group in mine.param_groups:
            group["lr"] = optimizer.param_groups[0]["lr"]
        mine.step()
        mine.zero_grad()

    def _start(self, optimizer: Optimizer) -> Optimizer:
        self._optimizer = type(optimizer)(self.network.parameters(), **optimizer.defaults)
        if self._stored is not None:
            self._optimizer.load_state_dict(dict(self._stored))
        for tensor in self.network.state_dict().values() if dist.is_initialized() else ():
            dist.broadcast(tensor, 0)
        return self._optimizer

    @override
    def state(self) -> dict[str, Any]:
        stored = self._stored if self._optimizer is None else self._optimizer.state_dict()
        return {"network": self.network.state_dict(), "optimizer": stored}

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._stored, self._optimizer = state["optimizer"], None
