"""A teacher that is the exponential moving average (EMA) of the student."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn
from typing_extensions import override

from lightning_compress.distillation.frozen_network import FrozenNetwork


class MeanTeacherNetwork(FrozenNetwork):
    """Exponential moving average of the student's parameters. Tarvainen and Valpola 2017 (arXiv:1703.01780).

    The decay of update ``n``, counted from 1, is the smaller of ``decay`` and ``(1 + n) / (10 + n)``. Buffers are
    copied from the student. The average of a quantized student computes in FP32.

    Args:
        network: Network of the student at the start of the fit.
        decay: Decay rate of the average.
        **options: Further arguments of :class:`FrozenNetwork`.
    """

    is_updated = True

    def __init__(self, network: nn.Module, *, decay: float, **options: Any) -> None:
        super().__init__(network, **options)
        self._decay = decay
        self._num_updates = 0

    @override
    def _identify(self, name: str) -> dict[str, str]:
        # Without a hash: the initial weights differ between runs, and a resumed run replaces them.
        return {"name": name, "hash": ""}

    @override
    def _callee(self, name: str) -> nn.Module:
        # The same module that the student calls, also where its forward does something else.
        return self.network.get_submodule(name)

    @override
    def step(self, student: nn.Module, optimizer: Optimizer) -> None:
        self._num_updates += 1
        # A smaller decay at first, so that the average forgets the random initialization within a few steps.
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        averages, latest = dict(self.network.named_parameters()), dict(student.named_parameters())
        # Matched by name and cast to the average's dtype and device, which AveragedModel does not do: the Trainer
        # converts the student (precision="64-true"), not its teachers.
        update = get_ema_multi_avg_fn(decay)
        gathered = [name for name in averages if isinstance(latest[name], DTensor)]
        for name in gathered:  # one at a time, as no rank may have memory for the whole student twice
            update([averages.pop(name)], [_full(latest[name]).to(self.network.get_parameter(name))], self._num_updates)
        values = [latest[name].detach().to(average) for name, average in averages.items()]
        if values:
            update(list(averages.values()), values, self._num_updates)
        own = dict(self.network.named_buffers())
        for name, buffer in student.named_buffers():
            if name in own:  # the average of a quantized student computes in FP32
                own[name].copy_(buffer)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "steps": self._num_updates}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self._num_updates = state["steps"]


def _full(parameter: nn.Parameter) -> Tensor:
    """Return the full tensor of a sharded parameter; a collective."""
    sharded: Any = parameter.detach()
    full: Tensor = sharded.full_tensor()
    return full
