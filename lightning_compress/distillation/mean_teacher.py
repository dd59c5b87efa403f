"""A student that is taught by its own past."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer
from typing_extensions import override

from lightning_compress.distillation.frozen_network import FrozenNetwork


class MeanNetwork(FrozenNetwork):
    """The exponential moving average of the student's weights. Tarvainen and Valpola 2017 (arXiv:1703.01780).

    In the first steps, ``(1 + step) / (10 + step)`` takes the place of a larger decay. Buffers are the student's.

    Args:
        network: The student's network as it starts.
        decay: Part of the average that stays in a step.
        **options: As of a frozen network.
    """

    learns = True

    def __init__(self, network: nn.Module, *, decay: float, **options: Any) -> None:
        super().__init__(network, **options)
        self._decay = decay
        self._steps = 0

    @override
    def _identify(self, name: str) -> dict[str, str]:
        return {"name": name, "hash": ""}  # its weights say nothing about who it is

    @override
    def step(self, student: nn.Module, optimizer: Optimizer) -> None:
        self._steps += 1
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps))
        theirs = dict(student.named_parameters())
        for name, mean in self.network.named_parameters():
            mean.data.lerp_(theirs[name].detach().to(mean), 1 - decay)
        for name, buffer in student.named_buffers():
            self.network.get_buffer(name).copy_(buffer)

    @override
    def state(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "steps": self._steps}

    @override
    def restore(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._steps = state["steps"]
