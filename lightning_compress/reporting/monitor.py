"""Callback that logs compression metrics."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn import Parameter
from typing_extensions import final

from lightning_compress.reporting.logger_media import log_histogram, log_table
from lightning_compress.reporting.sparsity import Count, count_weights, report
from lightning_compress.sharded_modules import is_sharded
from lightning_compress.trainer.compression_callback import techniques

_COLUMNS = ["layer", "weights", "zeros", "sparsity"]


@final
class CompressionMonitor(Callback):
    """Log the state of all techniques whenever one of them changes and at the end of every epoch.

    ``compression/sparsity`` is the sparsity of all selected weights, ``compression/sparsity/<layer>`` that of a single
    layer. ``compression/reached/<technique>`` is 1 once the target of a technique is reached, and techniques add
    numbers of their own: ``compression/clusters/<layer>``, ``compression/quantization_phase`` (0 observe, 1
    fake-quantize, 2 observers frozen, 3 batch norms frozen), ``compression/scale/<layer>`` and
    ``compression/range/<layer>``. All are logged at the step at which Lightning logs the metrics of the module (W&B:
    ``trainer/global_step``). The progress bar shows the sparsity. W&B and TensorBoard receive histograms of the
    largest weights, ``compression/weights/<layer>``, and W&B a table of all layers at the end of the fit.

    Args:
        per_layer: Also log the numbers of every layer.
        histograms: Number of weights with a histogram, the largest ones; 0 for none.
        histogram_epochs: Number of epochs between two histograms; also one before the first and after the last epoch.

    >>> from lightning.pytorch.demos.boring_classes import BoringModel
    >>> import lightning_compress as lc
    >>> options = dict(enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, logger=False)
    >>> callbacks = [lc.Pruning(0.5), lc.CompressionMonitor()]
    >>> trainer = Trainer(accelerator="cpu", max_steps=4, limit_val_batches=0, callbacks=callbacks, **options)
    >>> trainer.fit(BoringModel())
    >>> trainer.callback_metrics["sparsity"]
    tensor(0.5000)
    """

    def __init__(self, *, per_layer: bool = True, histograms: int = 8, histogram_epochs: int = 5) -> None:
        self.per_layer = per_layer
        self.histograms = histograms
        self.histogram_epochs = histogram_epochs
        self._num_changes = 0
        self._total = 0.0
        self._history: dict[str, dict[int, float]] = {}

    def history(self) -> dict[str, tuple[tuple[int, float], ...]]:
        """Return the totals that were logged, by name, as pairs of step and value."""
        return {name: tuple(points.items()) for name, points in self._history.items()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the initial state."""
        self._history = {}
        self._num_changes = _num_changes(trainer)
        self._log(trainer, pl_module)
        self._log_histograms(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the state if a technique has changed it in this batch."""
        if _num_changes(trainer) != self._num_changes:
            self._num_changes = _num_changes(trainer)
            self._log(trainer, pl_module, in_batch=True)
        pl_module.log("sparsity", self._total, prog_bar=True, logger=False)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the state at the end of the epoch."""
        self._log(trainer, pl_module)
        if self.histogram_epochs and (trainer.current_epoch + 1) % self.histogram_epochs == 0:
            self._log_histograms(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log histograms and a table of all layers."""
        self._log_histograms(trainer, pl_module)
        numbers = _layer_metrics(trainer, pl_module)
        columns = [*_COLUMNS, *numbers]
        rows = [
            [c.name, c.num_weights, c.num_zeros, c.sparsity, *(values.get(c.name) for values in numbers.values())]
            for c in _counts(trainer, pl_module)
        ]
        for logger in trainer.loggers:
            log_table(logger, "compression/layers", columns, rows, step=_logging_step(trainer))

    def _log(self, trainer: Trainer, pl_module: LightningModule, *, in_batch: bool = False) -> None:
        counts = _counts(trainer, pl_module)
        num_weights = sum(count.num_weights for count in counts)
        self._total = sum(count.num_zeros for count in counts) / max(num_weights, 1)
        metrics = {"compression/sparsity": self._total}
        for technique in techniques(trainer):
            metrics[f"compression/reached/{type(technique).__name__}"] = float(technique.reached)
            metrics |= {f"compression/{name}": value for name, value in technique.fit_metrics().items()}
        step = _logging_step(trainer, in_batch=in_batch)
        for name, value in metrics.items():
            self._history.setdefault(name.removeprefix("compression/"), {})[step] = value
        if self.per_layer:
            metrics |= {f"compression/sparsity/{count.name}": count.sparsity for count in counts}
            for kind, values in _layer_metrics(trainer, pl_module).items():
                metrics |= {f"compression/{kind}/{name}": value for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=step)

    def _log_histograms(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.histograms or not trainer.is_global_zero or is_sharded(pl_module):
            return
        selected = _selected(trainer, pl_module)
        largest = sorted(selected.items(), key=lambda item: -item[1].numel())[: self.histograms]
        for logger in trainer.loggers:
            for name, parameter in largest:
                log_histogram(logger, f"compression/weights/{name}", parameter, step=_logging_step(trainer))


def _logging_step(trainer: Trainer, *, in_batch: bool = False) -> int:
    """Return the step at which Lightning logs metrics of the module.

    Lightning counts a batch once, while ``global_step`` counts the steps of every optimizer.
    """
    stepped = trainer.fit_loop.epoch_loop._batches_that_stepped
    return min(trainer.global_step, stepped + int(in_batch))


def _num_changes(trainer: Trainer) -> int:
    return sum(technique.num_changes for technique in techniques(trainer))


def _layer_metrics(trainer: Trainer, pl_module: LightningModule) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for technique in techniques(trainer):
        for kind, values in technique.layer_metrics(pl_module).items():
            found.setdefault(kind, {}).update(values)
    return found


def _selected(trainer: Trainer, pl_module: LightningModule) -> dict[str, Parameter]:
    """Return the weights that any technique targets; all weights of layers if there is no technique."""
    ids = {id(target.parameter) for t in techniques(trainer) for target in t.select(pl_module)}
    # By identity and not by the name of the target: a shared tensor may be reported under another of its names.
    named = pl_module.named_parameters()
    if ids:
        return {name: parameter for name, parameter in named if id(parameter) in ids}
    layers = {count.name for count in report(pl_module).layers}
    return {name: parameter for name, parameter in named if name in layers}


def _counts(trainer: Trainer, pl_module: LightningModule) -> list[Count]:
    return [count_weights(name, parameter) for name, parameter in _selected(trainer, pl_module).items()]
