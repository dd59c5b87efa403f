"""LightningModule for image classification with a timm network or any other."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress.models.checkpoint_loading import CheckedModule
from lightning_compress.models.mixup import Mixup
from lightning_compress.models.stem import keep_resolution_
from lightning_compress.models.timm_networks import create_network
from lightning_compress.models.weights import load_weights_

_MIXING_SEED = "mixing_seed"  # key in checkpoints


def sgd(params: Iterable[Any]) -> Optimizer:
    """Create the default optimizer: SGD, learning rate 0.1, Nesterov momentum 0.9, weight decay 1e-4."""
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


class ClassificationModule(CheckedModule):
    """Train a network for image classification with cross-entropy.

    Logs ``train/loss``, ``val/loss``, ``val/acc``, ``test/loss`` and ``test/acc`` (top-1 accuracy in [0, 1]).

    Args:
        model: A timm name, including those of :mod:`lightning_compress.models.networks`, or a network that maps images
            ``(N, C, H, W)`` to logits ``(N, num_classes)``.
        num_classes: Number of classes.
        optimizer: Function from parameters to the optimizer.
        lr_scheduler: Function from the optimizer to a scheduler, which is stepped once per epoch. By default a cosine
            schedule from the initial learning rate to zero over the whole run, stepped once per batch.
        label_smoothing: Fraction of the target that is spread uniformly over all classes, in [0, 1).
        mixup: :class:`Mixup` of training batches on the device; ``training_step`` and callbacks then get targets
            ``(N, num_classes)``. The mixing depends only on the seed, rank, epoch and batch index, so a resumed run
            mixes like an uninterrupted one.
        small_input: If True, adapts a timm network to images of about 32x32: stride 1 in the first convolution, and no
            max-pool after it.
        checkpoint: File with the weights of the network, ``.safetensors``, ``.pt``, ``.pth`` or ``.ckpt``, a state
            dict or a Lightning checkpoint; loaded strictly.
        model_kwargs: Further arguments of the timm network, such as ``{in_chans: 1, img_size: 8}``.

    Attributes:
        model: The network.

    Raises:
        ValueError: For an unknown timm name, unsupported ``model_kwargs``, a checkpoint that does not match, or
            ``small_input`` with a network that does not support it. At the start of a fit, if a hook of the data module
            prevents mixup.

    >>> import lightning_compress as lc
    >>> module = lc.ClassificationModule("conv4", 10, model_kwargs={"in_chans": 1, "img_size": 8})
    >>> module(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        model: str | nn.Module,
        num_classes: int,
        *,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
        label_smoothing: float = 0.0,
        mixup: Mixup | None = None,
        small_input: bool = False,
        checkpoint: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1).")
        # load_from_checkpoint passes it as a dict.
        self.mixup = Mixup(**mixup) if isinstance(mixup, Mapping) else mixup
        # Functions and networks cannot be loaded with weights_only=True, and a checkpoint has its own weights instead
        # of the file of initial ones.
        own_network = ["model"] if isinstance(model, nn.Module) else []
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "checkpoint", "mixup", *own_network])
        self.save_hyperparameters({"mixup": self.mixup and asdict(self.mixup)})
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.label_smoothing = label_smoothing
        self._mixing_seed = _run_seed()
        self.num_classes = num_classes
        arguments = {"num_classes": num_classes, **(model_kwargs or {})}
        self.model = create_network(model, arguments) if isinstance(model, str) else model
        if small_input:
            keep_resolution_(self.model, model if isinstance(model, str) else type(model).__name__)
        if checkpoint is not None:
            load_weights_(self.model, checkpoint)
        # Lightning warns every user of a data module about this class's hook, which the user cannot change.
        warnings.filterwarnings("ignore", ".*overridden `on_after_batch_transfer` in `LightningModule` but have passed")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, num_classes)``."""
        return self.model(x)

    def on_fit_start(self) -> None:
        """Set the seed of mixup, unless the run is resumed, and check that no data module hook replaces it.

        Raises:
            ValueError: If the data module overrides ``on_after_batch_transfer``.
        """
        if not self.trainer.ckpt_path:
            self._mixing_seed = _run_seed()
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.mixup and datamodule is not None and is_overridden("on_after_batch_transfer", datamodule):
            name = type(datamodule).__name__
            raise ValueError(
                f"mixup: {name}.on_after_batch_transfer replaces the hook that mixes batches: move its code to "
                f"{name}.on_before_batch_transfer, or leave mixup out."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the seed of mixup."""
        if self.mixup:
            checkpoint[_MIXING_SEED] = self._mixing_seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the seed of mixup."""
        self._mixing_seed = checkpoint.get(_MIXING_SEED, _run_seed())

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Mix training batches, and return all others unchanged."""
        if not self.mixup or self._trainer is None or not self.trainer.training:
            return batch
        images, labels = batch
        seed = (self._mixing_seed, self.global_rank, self.current_epoch, self._batch_number)
        return self.mixup.mix(images, labels, self.num_classes, label_smoothing=self.label_smoothing, seed=seed)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Compute the cross-entropy of one batch."""
        images, labels = batch
        loss = self._loss(self(images), labels)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and accuracy of one batch."""
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Log the loss and accuracy of one batch."""
        self._evaluate(batch, "test", self.test_acc)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the logits of one batch, with or without labels."""
        return self(batch[0] if isinstance(batch, (list, tuple)) else batch)

    def configure_optimizers(self) -> Any:
        """Create the optimizer and its scheduler.

        Raises:
            ValueError: If the cosine schedule is used in a run without a bound.
        """
        return optimizer_config(self, self.optimizer, self.lr_scheduler)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the cross-entropy with classes ``(N,)``, or with probabilities ``(N, num_classes)`` from mixup."""
        if labels.is_floating_point():  # mixup has smoothed them already
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    @property
    def _batch_number(self) -> int:
        """Index of the current batch in its epoch, also in a resumed run."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        self._record(self(images), labels, stage, accuracy)

    @torch.compiler.disable  # a metric counts its updates, and each count would trigger a recompilation
    def _record(self, logits: Tensor, labels: Tensor, stage: str, accuracy: MulticlassAccuracy) -> None:
        accuracy(logits, labels)
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), prog_bar=stage == "val", sync_dist=True)
        self.log(f"{stage}/acc", accuracy, prog_bar=True)


def _run_seed() -> int:
    """Return the seed of ``seed_everything``, or PyTorch's initial one."""
    return torch.initial_seed() % 2**32


def optimizer_config(
    module: LightningModule, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
) -> dict[str, Any]:
    """Return Lightning's configuration of an optimizer and its scheduler, by default a cosine schedule per step.

    Args:
        module: Module to train, attached to a Trainer.
        optimizer: Function from parameters to the optimizer.
        lr_scheduler: Function from the optimizer to a scheduler.

    Raises:
        ValueError: If the cosine schedule is used in a run without a bound.
    """
    made = optimizer(module.parameters())
    if lr_scheduler is not None:
        return {"optimizer": made, "lr_scheduler": _scheduler_config(lr_scheduler(made))}
    num_steps = module.trainer.estimated_stepping_batches
    if num_steps == float("inf"):
        raise ValueError(
            "The cosine schedule needs the length of the run: set max_epochs or max_steps of the Trainer, or "
            "lr_scheduler."
        )
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(made, T_max=max(int(num_steps), 1))
    return {"optimizer": made, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}


def _scheduler_config(scheduler: Any) -> dict[str, Any]:
    """Return Lightning's configuration of a scheduler, with the metric that it monitors, if any."""
    monitor = getattr(scheduler, "monitor", None)
    return {"scheduler": scheduler, "interval": "epoch", **({"monitor": monitor} if monitor else {})}
