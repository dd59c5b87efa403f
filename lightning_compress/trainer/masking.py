"""Callbacks that hold zeros."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.trainer.constrained import ConstraintCallback


class MaskCallback(ConstraintCallback[MaskConstraint]):
    """Holds zeros.

    Args:
        targets: The masked tensors.
    """

    what = "masks"
    verb = "masked"

    def make_constraint(self, layers: Sequence[Layer]) -> MaskConstraint:
        """Masks that mask nothing yet."""
        return MaskConstraint(layers)
