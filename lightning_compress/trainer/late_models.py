"""Models that are built after ``Callback.setup``, and checkpoints that are read after the model is sharded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer


def around_configure_model(pl_module: LightningModule, before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call functions before and after ``configure_model`` of a model, in which layers are made and sharded.

    The first one is called after the ``setup`` of the module. Both are called once, also for a model that does not
    override ``configure_model``.

    Args:
        pl_module: The model; :func:`stop_waiting` undoes the call.
        before: Called before ``configure_model``.
        after: Called after it, before weights are restored and optimizers made.
    """
    configure_model = pl_module.configure_model

    # In the instance, where Lightning looks hooks up: no hook of a callback lies between configure_model and the
    # strategy's setup.
    def configured() -> None:
        stop_waiting(pl_module)
        before()
        configure_model()
        after()

    vars(pl_module)["configure_model"] = configured


def stop_waiting(pl_module: LightningModule) -> None:
    """Undo :func:`around_configure_model`."""
    vars(pl_module).pop("configure_model", None)


def before_loading(trainer: Trainer, call: Callable[[Path], None]) -> None:
    """Call a function before the strategy reads a checkpoint into the model, which is sharded by then.

    Args:
        trainer: The Trainer; :func:`stop_watching_loads` undoes the call.
        call: Function of the path of the checkpoint.
    """
    strategy = trainer.strategy
    load_checkpoint = strategy.load_checkpoint

    def load(checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        call(Path(strategy.broadcast(checkpoint_path)))
        return load_checkpoint(checkpoint_path, *args, **kwargs)

    vars(strategy)["load_checkpoint"] = load


def stop_watching_loads(trainer: Trainer) -> None:
    """Undo :func:`before_loading`."""
    vars(trainer.strategy).pop("load_checkpoint", None)
