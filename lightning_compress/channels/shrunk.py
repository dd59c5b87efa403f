"""A smaller network in place of the one that a class builds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import final

from lightning_compress.channels.removal_log import RemovalLog
from lightning_compress.trainer.base import CompressionCallback
from lightning_compress.trainer.lightning import callbacks_of, is_a, is_built_late

M = TypeVar("M", bound=LightningModule)


@final
class Shrunk(Callback):
    """Removes from a fresh model the channels that were removed before, so that its class need not change.

    It does so in ``setup``, before weights are restored and optimizers are made: ``fit(ckpt_path=...)``,
    ``test(ckpt_path=...)`` and so on load checkpoints of the smaller model. A model that is that small already is left
    alone.

    Args:
        log: What was removed, or the file that :meth:`RemovalLog.save` wrote.
        module: Name of the part of the LightningModule that was shrunk (``""``: the LightningModule itself).

    Raises:
        ValueError: If the file is no removal log; in ``setup``, if the log is of another network, or if callbacks that
            need the final shapes stand before this one.
    """

    def __init__(self, log: RemovalLog | str | Path, *, module: str = "") -> None:
        self.removal = log if isinstance(log, RemovalLog) else RemovalLog.load(log)
        self.module = module
        self._handle: RemovableHandle | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replays the log."""
        callbacks = callbacks_of(trainer)
        for other in callbacks[: callbacks.index(self)]:
            if isinstance(other, CompressionCallback) or is_a(other, "WeightAveraging", "StochasticWeightAveraging"):
                raise ValueError(f"Shrunk has to stand before {type(other).__name__}, which works on the final shapes.")
        self._replay_(pl_module)
        self._handle = pl_module.register_load_state_dict_pre_hook(self._refuse_larger)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lets go of the model."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = None

    def load_from_checkpoint(self, cls: type[M], path: str | Path, **kwargs: Any) -> M:
        """``cls.load_from_checkpoint(path, **kwargs)`` of a smaller model.

        Args:
            cls: The class of the model, as it is.
            path: A checkpoint of the smaller model.
            kwargs: What ``load_from_checkpoint`` takes.

        Raises:
            ValueError: If the log is of another network.
        """
        replay = self._replay_

        def load_state_dict(model: M, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            model.__class__ = cls  # the class below was only there for this moment, before weights are loaded
            replay(model)
            return model.load_state_dict(state, *args, **kwargs)

        late: Any = type(cls.__name__, (cls,), {"load_state_dict": load_state_dict, "__module__": cls.__module__})
        return late.load_from_checkpoint(path, **kwargs)

    def _refuse_larger(self, model: nn.Module, stored: Mapping[str, Tensor], prefix: str, *_: object) -> None:
        """Refuses weights of before the removal with a word on what to do."""
        before = prefix + (f"{self.module}." if self.module else "")
        for name, cut in self.removal.cuts.items():
            if before + name in stored and tuple(stored[before + name].shape) == cut.shape != cut.left:
                raise ValueError(
                    f"Shrunk: {before + name!r} in the checkpoint has shape {cut.shape}, as before the removal of "
                    f"channels: load it without Shrunk, shrink that network, and begin with what is left."
                )

    def _replay_(self, model: LightningModule) -> None:
        if self.module not in dict(model.named_modules()):
            late = " when callbacks are set up: build it in __init__" if is_built_late(model) else ""
            raise ValueError(f"Shrunk: the model has no module {self.module!r}{late}.")
        self.removal.replay_(model.get_submodule(self.module))
