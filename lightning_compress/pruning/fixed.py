"""Masks that stay as they are while a sparse model is fine-tuned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor
from typing_extensions import final

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.schedules import Progress, Schedule
from lightning_compress.targets import Targets
from lightning_compress.trainer.constraint_callback import ConstraintCallback


@final
class Fixed(ConstraintCallback[MaskConstraint]):
    """Keep the zeros of a loaded model while it is fine-tuned.

    Weights are masked, norms are not: remove zero channels first, with :func:`shrink`.

    Args:
        targets: Selection of the weights.

    Raises:
        ValueError: When the fit begins, if none of the selected weights is zero.

    >>> callback = Fixed(Targets(exclude=("head",)))
    """

    constraint_class = MaskConstraint
    noun = "masks"
    verb = "masked"

    def __init__(self, targets: Targets = Targets()) -> None:
        super().__init__(targets, Schedule(begin=0.0, curve="one_shot"))

    @property
    def reached(self) -> bool:
        """True, as the zeros are there from the beginning, as long as weights change only in steps."""
        return not self.strayed

    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Restore the masks, or take them from the zeros of the weights."""
        super().prepare(trainer, state)
        assert self.constraint is not None
        if state:
            return
        masks = _masks_of_zeros(self.constraint.layers)
        if not any(bool((~layer.full(mask)).any()) for layer, mask in zip(self.constraint.layers, masks, strict=True)):
            raise ValueError("Fixed() finds no zeros in its targets: load the sparse checkpoint before the fit.")
        self.constraint.replace(masks)
        self.constraint_replaced(trainer)

    def initial_constraint(self, layers: Sequence[Layer]) -> dict[str, Any]:
        """Return the masks of layers that join in mid-fit, from the zeros of their weights."""
        constraint = MaskConstraint(layers)
        constraint.replace(_masks_of_zeros(layers))
        return constraint.state_dict()

    def update(self, trainer: Trainer, now: Progress) -> None:
        """Leave the masks as they are."""


def _masks_of_zeros(layers: Sequence[Layer]) -> list[Tensor]:
    return [layer.weight != 0 for layer in layers]
