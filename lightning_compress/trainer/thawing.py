"""Frozen weights that are trained later in a fit, as with Lightning's ``BackboneFinetuning``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn
from torch.optim import Optimizer

from lightning_compress.targets import Target


class FrozenTargets:
    """Targets of a technique that are frozen when a fit begins.

    Args:
        targets: The frozen targets.
    """

    def __init__(self, targets: Sequence[Target] = ()) -> None:
        self._targets = list(targets)

    def pop_trained(self, optimizers: Sequence[Optimizer]) -> list[str]:
        """Return the names of targets that an optimizer trains by now, and forget them."""
        # This runs in every batch: optimizers are searched only once a target requires gradients.
        if not any(target.parameter.requires_grad for target in self._targets):
            return []
        held = held_by(optimizers)
        joining = {t.name for t in self._targets if t.parameter.requires_grad and id(t.parameter) in held}
        self._targets = [target for target in self._targets if target.name not in joining]
        return sorted(joining)


def held_by(optimizers: Iterable[Optimizer]) -> dict[int, nn.Parameter]:
    """Return the parameters that optimizers hold, by their ids."""
    return {id(p): p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
