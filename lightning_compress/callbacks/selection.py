"""The best model is the best of those that have reached their targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer

from lightning_compress.callbacks.lightning import is_a


@dataclass
class Selection:
    """Holds back the callbacks that choose by a metric while the model is not yet what is to be chosen among.

    A monitored ``ModelCheckpoint`` keeps no best (its ``save_top_k`` is 0 meanwhile) and ``EarlyStopping`` makes no
    check, so neither has anything to forget afterwards.
    """

    _held: list[tuple[Any, str, Any]] = field(default_factory=list)

    def hold(self, trainer: Trainer) -> None:
        """Stops choosing; callbacks that are held already are left alone."""
        for callback in trainer.callbacks if not self._held else ():
            if is_a(callback, "ModelCheckpoint") and callback.monitor is not None:
                self._replace(callback, "save_top_k", 0)
            elif is_a(callback, "EarlyStopping"):
                self._replace(callback, "_should_skip_check", _always)

    def release(self) -> None:
        """Starts choosing."""
        for callback, name, attributes in self._held:
            vars(callback).pop(name)
            vars(callback).update(attributes)
        self._held.clear()

    def save_last(self, trainer: Trainer) -> None:
        """Writes ``last.ckpt`` of held ``ModelCheckpoint``s that are to, since they only do so after a best one."""
        for callback, name, _ in self._held:
            if name == "save_top_k" and callback.save_last:
                callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))

    def _replace(self, callback: Any, name: str, value: Any) -> None:
        before = {name: vars(callback)[name]} if name in vars(callback) else {}
        self._held.append((callback, name, before))
        setattr(callback, name, value)


def _always(trainer: Trainer) -> bool:
    return True
