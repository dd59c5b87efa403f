"""A teacher that is trained together with the student (deep mutual learning)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_compress.distillation.frozen_network import FrozenNetwork
from lightning_compress.distillation.logit_formats import Positions, extract_logits
from lightning_compress.distillation.loss import LogitLoss
from lightning_compress.module_copies import copy_module


class PeerNetwork(FrozenNetwork):
    """Network trained on labels and on the student's logits. Zhang et al. 2018 (arXiv:1706.00384).

    It takes a step whenever the student's optimizer does, with its own optimizer of the same class and learning rate.
    Its loss is not scaled in 16-bit precision.

    Args:
        network: Network at the start of the fit.
        **options: Further arguments of :class:`FrozenNetwork`.
    """

    is_updated = True

    def __init__(self, network: nn.Module, **options: Any) -> None:
        super().__init__(network, **options)
        self.network.requires_grad_(True)
        self._optimizer: Optimizer | None = None
        self._optimizer_state: Mapping[str, Any] | None = None
        self._logits: list[Tensor] = []
        self._loss: Tensor | None = None

    @override
    def _identify(self, name: str) -> dict[str, str]:
        # Weights change in training and do not identify the network; this text is compared with that in checkpoints.
        return {"name": name, "hash": "learns along"}

    @override
    def __deepcopy__(self, memo: dict[int, Any]) -> PeerNetwork:
        """Copy the network but not its optimizer and graph, so that a dry run with the copy changes nothing here."""
        made = copy.copy(self)
        memo[id(self)] = made
        made._loss = made._optimizer = None
        made._logits = []
        made.network = copy_module(self.network, memo)
        made.features = copy.deepcopy(self.features, memo)
        return made

    @override
    def forward(
        self, args: Sequence[Any], kwargs: Mapping[str, Any], keys: Tensor | None = None, name: str = ""
    ) -> Any:
        """Run the network in training mode, keep its graph for :meth:`accumulate`, and return its output."""
        self.network.train()
        output = self._run(self._callee(name), args, kwargs)
        self._logits = extract_logits(output, "peer")
        return output

    @override
    def accumulate(self, heads: Sequence[tuple[Tensor, Positions]], losses: Sequence[tuple[float, LogitLoss]]) -> None:
        # The loss of a batch after which the optimizer took no step (gradient accumulation).
        if self._loss is not None:
            self._loss.backward()
        pairs = zip(self._logits, heads, strict=False)
        values = [_loss(at.rows(own), student.detach(), at.labels, losses) for own, (student, at) in pairs]
        # Backpropagated by step() or, if the optimizer takes none, by the next call.
        self._loss, self._logits = torch.stack(values).mean(), []

    @override
    def step(self, student: nn.Module, optimizer: Optimizer) -> None:
        if self._loss is None:
            return
        peer_optimizer = self._optimizer or self._create_optimizer(optimizer)
        self._loss.backward()
        self._loss = None
        # DDP does not wrap this network: its gradients are averaged here.
        ranks = dist.get_world_size() if dist.is_initialized() else 1
        for parameter in self.network.parameters() if ranks > 1 else ():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad.div_(ranks))
        for group in peer_optimizer.param_groups:
            group["lr"] = optimizer.param_groups[0]["lr"]
        peer_optimizer.step()
        peer_optimizer.zero_grad()

    def _create_optimizer(self, optimizer: Optimizer) -> Optimizer:
        self._optimizer = type(optimizer)(self.network.parameters(), **optimizer.defaults)
        if self._optimizer_state is not None:
            self._optimizer.load_state_dict(dict(self._optimizer_state))
        # Ranks may have initialized the network differently; DDP does this broadcast for the student only.
        for tensor in self.network.state_dict().values() if dist.is_initialized() else ():
            dist.broadcast(tensor, 0)
        return self._optimizer

    @override
    def state_dict(self) -> dict[str, Any]:
        optimizer = self._optimizer_state if self._optimizer is None else self._optimizer.state_dict()
        return {"network": self.network.state_dict(), "optimizer": optimizer}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        # The optimizer is created in the first step, as it takes its class and defaults from the student's.
        self._optimizer_state, self._optimizer = state["optimizer"], None
        self._loss, self._logits = None, []  # of the weights before


def _loss(logits: Tensor, student: Tensor, labels: Tensor | None, losses: Sequence[tuple[float, LogitLoss]]) -> Tensor:
    """Return the loss of one head: its cross-entropy, and the weighted losses between its logits and the student's."""
    if labels is None:
        raise ValueError("A Peer needs labels, which the batches do not have: use a Teacher or a MeanTeacher.")
    if not len(logits):
        return logits.float().sum()
    loss = F.cross_entropy(logits.float(), labels.long() if labels.ndim == 1 else labels)
    for weight, each in losses:
        loss = loss + weight * each(logits, student, labels)
    return loss
