"""The best model is the best of those that have reached their targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_compress.trainer.lightning import callbacks_of, is_a


@dataclass
class Selection:
    """Holds back the callbacks that choose by a metric while the model is not yet what is to be chosen among.

    A monitored ``ModelCheckpoint`` keeps no best but writes its ``last.ckpt`` if it is to, and ``EarlyStopping`` makes
    no check, so neither has anything to forget afterwards.
    """

    _held: list[tuple[Any, str, Any]] = field(default_factory=list)

    def hold(self, trainer: Trainer) -> None:
        """Stops choosing; callbacks that are held already are left alone."""
        for callback in callbacks_of(trainer) if not self._held else ():
            if is_a(callback, "ModelCheckpoint") and getattr(callback, "monitor", None) is not None:
                self._replace(callback, "_save_topk_checkpoint", partial(_keep_no_best, callback))
            elif is_a(callback, "EarlyStopping"):
                self._replace(callback, "_should_skip_check", _always)

    def release(self) -> None:
        """Starts choosing."""
        for callback, name, attributes in self._held:
            vars(callback).pop(name)
            vars(callback).update(attributes)
        self._held.clear()

    def _replace(self, callback: Any, name: str, value: Any) -> None:
        before = {name: vars(callback)[name]} if name in vars(callback) else {}
        self._held.append((callback, name, before))
        setattr(callback, name, value)


def _keep_no_best(callback: Any, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
    """Stands for saving one of the best: ModelCheckpoint writes the last after it, at a step with a checkpoint."""
    callback._last_global_step_saved = trainer.global_step


def _always(trainer: Trainer) -> bool:
    return True
