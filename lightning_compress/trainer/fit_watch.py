"""Notice weights that change, or leave the model, where no hook sees it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lightning_compress.constraints.constraint import Constraint
from lightning_compress.constraints.layer import Layer, group_of
from lightning_compress.targets import shorten

_NUM_SAMPLES = 16  # weights of a layer that are compared
_MAX_IDLE = 5  # batches without a completed step after which they are
_CHECK_EVERY = 10  # batches between two checks that weights are in place, and in the constraint


class FitWatch:
    """Warn once each of weights that change without a completed step, leave the constraint, or leave the model.

    Args:
        technique: Name of the technique for messages.
        verb: Participle for what it does to a weight, such as ``"masked"``.
        constraint: The constraint, with its layers.
    """

    def __init__(self, technique: str, verb: str, constraint: Constraint) -> None:
        self._technique, self._verb = technique, verb
        self._constraint = constraint
        self._num_batches = self._num_idle = 0
        self._sample: Tensor | None = _draw(constraint.layers)
        self._moved = self._enforces = False
        self._unheld: list[str] = []
        self._replaced: list[str] = []
        self._warned: set[str] = set()

    @property
    def strayed(self) -> bool:
        """True if weights are not in the model any more, or have changed since the last completed step."""
        return self._moved or bool(self._unheld or self._replaced)

    def step_completed(self) -> None:
        """Expect weights to differ: a step was completed, or the constraint has changed."""
        self._num_idle, self._sample, self._moved = 0, None, False

    def batch_started(self, model: nn.Module) -> None:
        """Make the checks that are due; a usual fit, with a step in every few batches, compares nothing."""
        self._num_batches += 1
        self._num_idle += 1
        if self._enforces:
            self._constraint.project_weights_()
        if self._num_idle % _MAX_IDLE == 0:
            self.check_steps()
        if self._num_batches % _CHECK_EVERY == 0:
            self.check_weights(model)

    def batch_ended(self) -> None:
        """Project weights for validation, if something other than an optimizer changes them."""
        if self._enforces:
            self._constraint.project_weights_()

    def lose(self, layers: Sequence[Layer]) -> None:
        """Warn of weights that no optimizer holds any more."""
        if layers:
            self._unheld = [layer.name for layer in layers]
            self._warn(
                f"the optimizers were replaced during the fit and do not hold {shorten(self._unheld)}, which cannot be "
                f"{self._verb} after a step any more: give the new optimizers the same parameters."
            )

    @torch.no_grad()
    def check_steps(self) -> None:
        """Compare weights with those of the last call, unless a step was completed since; collective if sharded."""
        layers = self._constraint.layers
        last, self._sample = self._sample, _draw(layers)
        moved = last is not None and not torch.equal(last, self._sample)
        self._moved = _on_any_rank(layers, moved) or self._moved
        if self._moved:
            self._warn(
                f"weights such as {layers[0].name!r} change without a completed step of the optimizers that "
                f"configure_optimizers returned, and are not {self._verb}: let optimizer.step() make the steps."
            )

    def check_weights(self, model: nn.Module) -> None:
        """Check that the model has its weights, and that they are in the constraint; a collective if sharded."""
        layers = self._constraint.layers
        parameters = dict(model.named_parameters(remove_duplicate=False))
        self._replaced = [layer.name for layer in layers if parameters.get(layer.name) is not layer.parameter]
        if self._replaced:
            self._warn(
                f"{shorten(self._replaced)} were replaced in the model during the fit and are not {self._verb} "
                "any more: change values in place with copy_, or replace parameters before the fit."
            )
        if _on_any_rank(layers, not self._constraint.is_satisfied()):
            self._enforces = True
            self._constraint.project_weights_()
            self._warn(
                f"weights that are {self._verb} were changed after the optimizer's step(): they are {self._verb} again "
                "at the start and the end of each batch; change them before the step."
            )

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            rank_zero_warn(f"{self._technique}: {message}")


def _draw(layers: Sequence[Layer]) -> Tensor:
    rows = (layer.weight.flatten() for layer in layers)
    return torch.cat([row[:: max(1, len(row) // _NUM_SAMPLES)].double().cpu() for row in rows]).nan_to_num()


def _on_any_rank(layers: Sequence[Layer], flag: bool) -> bool:
    """Return True if a flag is set on any rank that holds a shard of the layers."""
    group = group_of(layers)
    if group is None:
        return flag
    flags = torch.tensor([int(flag)], device=layers[0].weight.device)
    dist.all_reduce(flags, dist.ReduceOp.MAX, group=group)
    return bool(flags)
