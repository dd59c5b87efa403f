"""Masks of the pruning callbacks of a fit, which clustered weights obey."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_compress.constraints.layer import Layer
from lightning_compress.constraints.mask import MaskConstraint
from lightning_compress.trainer.compression_callback import CompressionCallback, techniques
from lightning_compress.trainer.constraint_callback import ConstraintCallback, callbacks_constraining


class MasksOfFit:
    """Masks of some layers.

    Args:
        trainer: The Trainer of the fit.
        layers: Layers whose weights may be masked.
    """

    def __init__(self, trainer: Trainer, layers: Sequence[Layer]) -> None:
        found = (mask for layer in layers for mask in callbacks_constraining(trainer, MaskConstraint, layer))
        self._callbacks: list[ConstraintCallback[MaskConstraint]] = list(dict.fromkeys(found))
        self._num_seen = self._num_changes

    @property
    def reached(self) -> bool:
        """True if all masks have their final sparsity."""
        return all(callback.reached for callback in self._callbacks)

    @property
    def changed(self) -> bool:
        """True if masks were replaced since :meth:`zeros` was called, or since the beginning."""
        return self._num_changes != self._num_seen

    def zeros(self, layers: Sequence[Layer]) -> list[Tensor | None]:
        """Return the masked positions of each layer, or ``None`` for a layer without a mask."""
        self._num_seen = self._num_changes
        masked = {
            id(layer.parameter): zeros
            for callback in self._callbacks
            if callback.constraint is not None
            for layer, zeros in zip(callback.constraint.layers, callback.constraint.zeros, strict=True)
        }
        return [masked.get(id(layer.parameter)) for layer in layers]

    @property
    def _num_changes(self) -> int:
        return sum(callback.num_changes for callback in self._callbacks)


def check_masks_come_first(trainer: Trainer, callback: CompressionCallback) -> None:
    """Check that no pruning callback follows a callback that assigns weights to clusters.

    Raises:
        ValueError: If one does.
    """
    later = techniques(trainer)[techniques(trainer).index(callback) + 1 :]
    if any(getattr(technique, "constraint_class", None) is MaskConstraint for technique in later):
        raise ValueError(
            f"{type(callback).__name__} precedes a pruning callback, which would prune members of its clusters: put it "
            "after the pruning callback in callbacks=[...]."
        )
