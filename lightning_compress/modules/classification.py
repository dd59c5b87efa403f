"""Image classification with any timm network, or with your own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress import networks  # noqa: F401  (registers its networks with timm)
from lightning_compress.modules.weights import load_weights_


def sgd(params: Iterable[Any]) -> Optimizer:
    """The default optimizer: SGD at 0.1 with Nesterov momentum 0.9 and weight decay 1e-4."""
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


class ClassificationModule(LightningModule):
    """Trains a network with cross-entropy; logs ``train/loss``, ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc``.

    The network is ``self.model``, so that pruning, reports and exporters find it under one name.

    Args:
        model: A timm name (those of :mod:`lightning_compress.networks` included), or a network of your own that maps
            images ``(N, C, H, W)`` to logits ``(N, num_classes)``.
        num_classes: Number of classes.
        optimizer: Makes the optimizer from parameters.
        lr_scheduler: Makes a scheduler from the optimizer, stepped once per epoch. By default the learning rate falls
            to zero along a cosine over the whole run, step by step.
        label_smoothing: Part of the target that is spread over all classes, in [0, 1).
        checkpoint: File with weights of the network, ``.safetensors``, or ``.pt``, ``.pth`` or ``.ckpt`` as PyTorch or
            Lightning write them; loaded strictly.
        model_kwargs: Further arguments of the timm network, such as ``{in_chans: 1, img_size: 8}``.

    Raises:
        ValueError: For a name that timm does not know, arguments it does not take, and a checkpoint that does not fit.

    >>> module = ClassificationModule("conv4", 10, model_kwargs={"in_chans": 1, "img_size": 8})
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
        checkpoint: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1).")
        # No functions and no networks, which checkpoints must not hold; nor a file of starting weights, since a
        # checkpoint has its own.
        own_network = ["model"] if isinstance(model, nn.Module) else []
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "checkpoint", *own_network])
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.label_smoothing = label_smoothing
        arguments = {"num_classes": num_classes, **(model_kwargs or {})}
        self.model = create(model, arguments) if isinstance(model, str) else model
        if checkpoint is not None:
            load_weights_(self.model, checkpoint)
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(N, C, H, W)`` to logits ``(N, num_classes)``."""
        return self.model(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = batch
        loss = F.cross_entropy(self(images), labels, label_smoothing=self.label_smoothing)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy of one batch."""
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Loss and accuracy of one batch."""
        self._evaluate(batch, "test", self.test_acc)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Logits of one batch, with or without labels."""
        return self(batch[0] if isinstance(batch, (list, tuple)) else batch)

    def configure_optimizers(self) -> Any:
        """The optimizer, with the given scheduler or the cosine."""
        optimizer = self.optimizer(self.parameters())
        if self.lr_scheduler is not None:
            return {"optimizer": optimizer, "lr_scheduler": _monitored(self.lr_scheduler(optimizer))}
        num_steps = self.trainer.estimated_stepping_batches
        if num_steps == float("inf"):
            raise ValueError("The cosine needs an end: set the Trainer's max_epochs or max_steps, or an lr_scheduler.")
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(int(num_steps), 1))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": cosine, "interval": "step"}}

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        logits = self(images)
        accuracy(logits, labels)
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), prog_bar=stage == "val", sync_dist=True)
        self.log(f"{stage}/acc", accuracy, prog_bar=True)


def create(name: str, arguments: dict[str, Any], *, what: str = "model") -> nn.Module:
    """Builds a network of timm's, or one that this package registers there.

    Args:
        name: Its name.
        arguments: For ``timm.create_model``.
        what: What messages call it.

    Raises:
        ValueError: If there is none of that name, if it does not take the arguments, and if it has no weights to load.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "timm.list_models() has the names."
        raise ValueError(f"{what}={name!r} is no network that timm knows; {advice}")
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        given = {key: value for key, value in arguments.items() if key not in ("num_classes", "pretrained")}
        raise ValueError(f"model_kwargs={given} do not fit {name!r}: {error}") from error


def _monitored(scheduler: Any) -> dict[str, Any]:
    """What Lightning takes for a scheduler; those that watch a metric say which."""
    monitor = getattr(scheduler, "monitor", None)
    return {"scheduler": scheduler, "interval": "epoch", **({"monitor": monitor} if monitor else {})}
