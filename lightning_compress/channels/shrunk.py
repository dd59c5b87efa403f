"""Callback that replays a removal log on a fresh model before its weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import final

from lightning_compress.channels.removal_log import RemovalLog
from lightning_compress.trainer.compression_callback import CompressionCallback
from lightning_compress.trainer.copied_networks import find_copies, shapes_of
from lightning_compress.trainer.queries import callbacks_of, is_a, is_built_late

M = TypeVar("M", bound=LightningModule)


@final
class Shrunk(Callback):
    """Remove the channels and blocks of a removal log from a fresh model without a change of its class.

    The removal takes place in ``setup``, before weights are restored and optimizers are created, so that
    ``fit(ckpt_path=...)``, ``test(ckpt_path=...)`` and so on load checkpoints of the smaller model. A model of the
    final shapes is left unchanged.

    Args:
        log: A removal log, or the path of the file that :meth:`RemovalLog.save` wrote.
        module: Name of the submodule of the LightningModule that was shrunk (``""``: the LightningModule itself).

    Raises:
        ValueError: If the file is not a removal log; in ``setup``, if the log belongs to another model, or if
            callbacks that depend on the final shapes precede this one.

    >>> import lightning_compress as lc
    >>> callback = lc.Shrunk(lc.RemovalLog(), module="net")
    >>> callback.removal
    RemovalLog(cuts={}, attributes={}, transposed=(), blocks=())
    """

    def __init__(self, log: RemovalLog | str | Path, *, module: str = "") -> None:
        self.removal = log if isinstance(log, RemovalLog) else RemovalLog.load(log)
        self.module = module
        self._handles: list[RemovableHandle] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replay the log, before masks, quantizers and averages are created for the shapes of the model."""
        callbacks = callbacks_of(trainer)
        for other in callbacks[: callbacks.index(self)]:
            if isinstance(other, CompressionCallback) or is_a(other, "WeightAveraging", "StochasticWeightAveraging"):
                raise ValueError(
                    f"Shrunk must precede {type(other).__name__}, which depends on the final shapes: put it first in "
                    "callbacks."
                )
        named = dict(pl_module.named_modules())
        dense = shapes_of(named[self.module]) if self.module in named else {}
        self._replay_(pl_module)
        self._handles = [pl_module.register_load_state_dict_pre_hook(self._check_shapes)]
        if shapes_of(pl_module.get_submodule(self.module)) != dense:
            for name, copied in find_copies(pl_module, self.module, dense):
                self._handles.append(copied.register_load_state_dict_pre_hook(self._follow))
                rank_zero_warn(
                    f"Shrunk: {name!r} is as {self.module!r} was before the removal of channels, and loses them when "
                    f"it loads weights of the smaller {self.module!r}: if it is updated in another way, add "
                    f"Shrunk(log, module={name!r})."
                )

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hooks on loaded weights."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def load_from_checkpoint(self, cls: type[M], path: str | Path, **kwargs: Any) -> M:
        """Return ``cls.load_from_checkpoint(path, **kwargs)`` for a checkpoint of the smaller model.

        Args:
            cls: Class of the model.
            path: Checkpoint of the smaller model.
            kwargs: Arguments of ``load_from_checkpoint``.

        Raises:
            ValueError: If the log belongs to another model.
        """
        replay = self._replay_

        # load_from_checkpoint offers no step between building the model and loading its weights. A temporary subclass
        # intercepts load_state_dict, and restores the class before it continues.
        def load_state_dict(model: M, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
            model.__class__ = cls
            replay(model)
            return model.load_state_dict(state, *args, **kwargs)

        late: Any = type(cls.__name__, (cls,), {"load_state_dict": load_state_dict, "__module__": cls.__module__})
        return late.load_from_checkpoint(path, **kwargs)

    def _check_shapes(self, model: nn.Module, stored: Mapping[str, Tensor], prefix: str, *_: object) -> None:
        """Raise a ``ValueError`` for weights with the shapes from before the removal, or of removed blocks."""
        submodule = prefix + (f"{self.module}." if self.module else "")
        block = next(self._inside_blocks(stored, submodule), None)
        if block is not None:
            raise ValueError(
                f"Shrunk: {block!r} of a removed block is in the checkpoint, as before the removal: load it without "
                "Shrunk, then shrink the model."
            )
        for name, cut in self.removal.cuts.items():
            if submodule + name in stored and tuple(stored[submodule + name].shape) == cut.shape != cut.final_shape:
                raise ValueError(
                    f"Shrunk: {submodule + name!r} has shape {cut.shape} in the checkpoint, as before the removal of "
                    "channels: load it without Shrunk, then shrink the model."
                )

    def _follow(self, copied: nn.Module, stored: Mapping[str, Tensor], prefix: str, *_: object) -> None:
        """Remove the channels of a copy of the network, which loads weights without them."""
        shapes = {name: tuple(stored[prefix + name].shape) for name in self.removal.cuts if prefix + name in stored}
        is_stored = any(name.startswith(prefix) for name in stored)
        lost = bool(self.removal.blocks) and is_stored and not any(self._inside_blocks(stored, prefix))
        if lost or any(shape == self.removal.cuts[name].final_shape for name, shape in shapes.items()):
            self.removal.replay_(copied)

    def _inside_blocks(self, stored: Iterable[str], prefix: str) -> Iterator[str]:
        """Yield the names of tensors that belong to removed blocks."""
        inside = tuple(f"{prefix}{name}." for name in self.removal.blocks)
        return (name for name in stored if inside and name.startswith(inside))

    def _replay_(self, model: LightningModule) -> None:
        if self.module not in dict(model.named_modules()):
            late = " when callbacks are set up: build it in __init__" if is_built_late(model) else ""
            raise ValueError(f"Shrunk: the model has no module {self.module!r}{late}.")
        self.removal.replay_(model.get_submodule(self.module))
