"""Compression as metrics."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import final

from lightning_compress.reporting.sparsity import Count, report
from lightning_compress.trainer.base import techniques

_COLUMNS = ["layer", "weights", "zeros", "sparsity"]


@final
class CompressionMonitor(Callback):
    """Logs sparsity through the Trainer's loggers after each change of a constraint and after each epoch.

    ``compression/sparsity`` is that of all selected weights together, ``compression/sparsity/<layer>`` that of each.
    Both are logged at the step at which Lightning logs the module's own metrics (W&B: ``trainer/global_step``).
    A logger that can (W&B) gets a table of the layers at the end of the fit; the progress bar shows the total.

    Args:
        per_layer: Log each layer too, not only the total.
    """

    def __init__(self, *, per_layer: bool = True) -> None:
        self.per_layer = per_layer
        self._num_changes = 0
        self._total = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs where the fit begins."""
        self._num_changes = _num_changes(trainer)
        self._log(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs if a constraint has changed in this batch."""
        if _num_changes(trainer) != self._num_changes:
            self._num_changes = _num_changes(trainer)
            self._log(trainer, pl_module, in_batch=True)
        pl_module.log("sparsity", self._total, prog_bar=True, logger=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the epoch's last state."""
        self._log(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the table of layers."""
        rows = [[c.name, c.num_weights, c.num_zeros, c.sparsity] for c in _counts(trainer, pl_module)]
        for logger in trainer.loggers:
            if hasattr(logger, "log_table"):
                logger.log_table("compression/layers", columns=_COLUMNS, data=rows, step=_axis(trainer))

    def _log(self, trainer: Trainer, pl_module: LightningModule, *, in_batch: bool = False) -> None:
        counts = _counts(trainer, pl_module)
        num_weights = sum(count.num_weights for count in counts)
        self._total = sum(count.num_zeros for count in counts) / max(num_weights, 1)
        metrics = {"compression/sparsity": self._total}
        if self.per_layer:
            metrics |= {f"compression/sparsity/{count.name}": count.sparsity for count in counts}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=_axis(trainer, in_batch=in_batch))


def _axis(trainer: Trainer, *, in_batch: bool = False) -> int:
    """Where Lightning would put the module's own metrics: it counts a batch once, ``global_step`` every optimizer."""
    stepped = trainer.fit_loop.epoch_loop._batches_that_stepped
    return min(trainer.global_step, stepped + int(in_batch))


def _num_changes(trainer: Trainer) -> int:
    return sum(technique.num_changes for technique in techniques(trainer))


def _counts(trainer: Trainer, pl_module: LightningModule) -> list[Count]:
    """Zeros of the weights that some technique works on; of all weights if there is none."""
    selected = {id(target.parameter) for t in techniques(trainer) for target in t.targets.select(pl_module)}
    # Not by the targets' names: a shared tensor may be reported under another of its names.
    names = {name for name, parameter in pl_module.named_parameters() if id(parameter) in selected}
    return [count for count in report(pl_module).layers if count.name in names or not names]
