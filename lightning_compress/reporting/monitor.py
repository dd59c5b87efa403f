"""Callback that logs compression metrics."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import final

from lightning_compress.reporting.sparsity import Count, count_weights, report
from lightning_compress.trainer.compression_callback import techniques

_COLUMNS = ["layer", "weights", "zeros", "sparsity"]


@final
class CompressionMonitor(Callback):
    """Log sparsity to the Trainer's loggers whenever a mask or codebook changes and at the end of every epoch.

    ``compression/sparsity`` is the sparsity of all selected weights, ``compression/sparsity/<layer>`` that of a single
    layer. Both are logged at the step at which Lightning logs the metrics of the module (W&B:
    ``trainer/global_step``). The progress bar shows the total, and loggers with a ``log_table`` method (W&B) receive a
    table of all layers at the end of the fit.

    Args:
        per_layer: Also log the sparsity of every layer.

    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> import lightning_compress as lc
    >>> options = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=False)
    >>> callbacks = [lc.Pruning(0.5), lc.CompressionMonitor()]
    >>> trainer = Trainer(accelerator="cpu", max_steps=4, limit_val_batches=0, callbacks=callbacks, **options)
    >>> trainer.fit(BoringModel())
    >>> trainer.callback_metrics["sparsity"]
    tensor(0.5000)
    """

    def __init__(self, *, per_layer: bool = True) -> None:
        self.per_layer = per_layer
        self._num_changes = 0
        self._total = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the initial sparsity."""
        self._num_changes = _num_changes(trainer)
        self._log(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the sparsity if a constraint has changed in this batch."""
        if _num_changes(trainer) != self._num_changes:
            self._num_changes = _num_changes(trainer)
            self._log(trainer, pl_module, in_batch=True)
        pl_module.log("sparsity", self._total, prog_bar=True, logger=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the sparsity at the end of the epoch."""
        self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log a table of all layers."""
        rows = [[c.name, c.num_weights, c.num_zeros, c.sparsity] for c in _counts(trainer, pl_module)]
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("compression/layers", columns=_COLUMNS, data=rows, step=_logging_step(trainer))

    def _log(self, trainer: Trainer, pl_module: LightningModule, *, in_batch: bool = False) -> None:
        counts = _counts(trainer, pl_module)
        num_weights = sum(count.num_weights for count in counts)
        self._total = sum(count.num_zeros for count in counts) / max(num_weights, 1)
        metrics = {"compression/sparsity": self._total}
        if self.per_layer:
            metrics |= {f"compression/sparsity/{count.name}": count.sparsity for count in counts}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=_logging_step(trainer, in_batch=in_batch))


def _logging_step(trainer: Trainer, *, in_batch: bool = False) -> int:
    """Return the step at which Lightning logs metrics of the module.

    Lightning counts a batch once, while ``global_step`` counts the steps of every optimizer.
    """
    stepped = trainer.fit_loop.epoch_loop._batches_that_stepped
    return min(trainer.global_step, stepped + int(in_batch))


def _num_changes(trainer: Trainer) -> int:
    return sum(technique.num_changes for technique in techniques(trainer))


def _counts(trainer: Trainer, pl_module: LightningModule) -> list[Count]:
    """Return the counts of the weights that any technique targets; of all weights if there is no technique."""
    selected = {id(target.parameter) for t in techniques(trainer) for target in t.select(pl_module)}
    if not selected:
        return list(report(pl_module).layers)
    # By identity and not by the name of the target: a shared tensor may be reported under another of its names.
    return [count_weights(name, p) for name, p in pl_module.named_parameters() if id(p) in selected]
