"""Selection of a best model among those that have reached their compression targets."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from lightning_compress.trainer.queries import callbacks_of, is_a


@dataclass
class ModelSelection:
    """Suspend and resume the callbacks that select a model by a metric.

    A dense model is almost always more accurate than the compressed one, so a plain monitor would keep the first epoch.
    While suspended, a monitored ``ModelCheckpoint`` keeps no best but writes its ``last.ckpt``, and ``EarlyStopping``
    makes no check, so no score of a dense model remains.
    """

    _replaced: list[tuple[Any, str, Any]] = field(default_factory=list)

    def suspend(self, trainer: Trainer) -> None:
        """Suspend the selection; does nothing if it is suspended already."""
        for callback in callbacks_of(trainer) if not self._replaced else ():
            if is_a(callback, "ModelCheckpoint") and getattr(callback, "monitor", None) is not None:
                self._replace(callback, "_save_topk_checkpoint", partial(_keep_no_best, callback))
            elif is_a(callback, "EarlyStopping"):
                self._replace(callback, "_should_skip_check", _always)

    def resume(self) -> None:
        """Restore the methods of the suspended callbacks."""
        for callback, name, attributes in self._replaced:
            vars(callback).pop(name)
            vars(callback).update(attributes)
        self._replaced.clear()

    def _replace(self, callback: Any, name: str, method: Any) -> None:
        before = {name: vars(callback)[name]} if name in vars(callback) else {}
        self._replaced.append((callback, name, before))
        setattr(callback, name, method)


def _keep_no_best(callback: Any, trainer: Trainer, monitor_candidates: dict[str, Tensor]) -> None:
    # ModelCheckpoint writes last.ckpt afterwards, but only at a step at which it has saved a checkpoint.
    callback._last_global_step_saved = trainer.global_step


def _always(trainer: Trainer) -> bool:
    return True
