"""Masks that stay."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from typing_extensions import final

from lightning_compress.targets import Targets
from lightning_compress.trainer.masking import MaskCallback


@final
class Fixed(MaskCallback):
    """Keeps the zeros that a loaded model has, while it is trained on.

    Weights are held, and norms are not: whole channels that are zero are better removed first, with :func:`shrink`.

    Args:
        targets: Which weights.

    Raises:
        ValueError: When the fit begins, if none of the targets' weights is zero.
    """

    def __init__(self, targets: Targets = Targets()) -> None:
        super().__init__(targets)

    @property
    def reached(self) -> bool:
        """Always: the zeros are there."""
        return True

    def prepare(self, trainer: Trainer, state: dict[str, Any] | None) -> None:
        """Takes the masks from the state, else from the zeros of the weights."""
        assert self.constraint is not None
        if state:
            self.steps = state["steps"]
            self.constraint.load_state_dict(state["constraint"])
            return
        masks = [layer.weight != 0 for layer in self.constraint.layers]
        if not any(bool((~layer.full(mask)).any()) for layer, mask in zip(self.constraint.layers, masks, strict=True)):
            raise ValueError("Fixed() finds no zeros in its targets: load the sparse checkpoint before the fit.")
        self.constraint.replace(masks)
        self.update_constraint(trainer)
