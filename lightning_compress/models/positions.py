"""LightningModules with one class for each position: semantic segmentation and token classification."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

from lightning_compress.models.checkpoint_loading import CheckedModule
from lightning_compress.models.classification import optimizer_config, sgd

_IGNORED = -100  # label of positions without a class


class _PositionsModule(CheckedModule):
    """Base class: cross-entropy, accuracy and mean intersection over union over all positions with a label."""

    def __init__(
        self, num_classes: int, optimizer: OptimizerCallable, lr_scheduler: LRSchedulerCallable | None
    ) -> None:
        super().__init__()
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        options: dict[str, Any] = {"num_classes": num_classes, "ignore_index": _IGNORED}
        self.val_acc = MulticlassAccuracy(**options, average="micro")
        self.test_acc = MulticlassAccuracy(**options, average="micro")
        self.test_iou = MulticlassJaccardIndex(**options)

    @abstractmethod
    def logits_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the logits ``(N, C, ...)`` of a batch and the labels ``(N, ...)``."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Compute the cross-entropy of one batch."""
        loss = F.cross_entropy(*self.logits_and_labels(batch), ignore_index=_IGNORED)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss and accuracy of one batch."""
        self.evaluate(batch, "val", val_acc=self.val_acc)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        """Log the loss, accuracy and mean intersection over union of one batch."""
        self.evaluate(batch, "test", test_acc=self.test_acc, test_iou=self.test_iou)

    @torch.compiler.disable  # a metric counts its updates, and each count would trigger a recompilation
    def evaluate(self, batch: Any, stage: str, **metrics: Any) -> None:
        """Log the loss and the metrics of one batch."""
        logits, labels = self.logits_and_labels(batch)
        loss = F.cross_entropy(logits, labels, ignore_index=_IGNORED)
        self.log(f"{stage}/loss", loss, batch_size=len(labels), sync_dist=True)
        for name, metric in metrics.items():
            metric(logits, labels)
            self.log(name.replace("_", "/", 1), metric, batch_size=len(labels), prog_bar=True)

    def configure_optimizers(self) -> Any:
        """Create the optimizer and its scheduler.

        Raises:
            ValueError: If the cosine schedule is used in a run without a bound.
        """
        return optimizer_config(self, self.optimizer, self.lr_scheduler)


class SegmentationModule(_PositionsModule):
    """Train a network for semantic segmentation with cross-entropy.

    Logs ``train/loss``, ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc`` (accuracy of all pixels) and
    ``test/iou`` (mean intersection over union of the classes, both in [0, 1]). Pixels with the label -100 do not count.

    Args:
        model: Network that maps images ``(N, C, H, W)`` to logits ``(N, num_classes, H, W)``, such as
            ``segmentation_models_pytorch.Unet``.
        num_classes: Number of classes.
        optimizer: Function from parameters to the optimizer.
        lr_scheduler: Function from the optimizer to a scheduler, which is stepped once per epoch. By default a cosine
            schedule to zero over the whole run, stepped once per batch.

    Attributes:
        model: The network.

    >>> import lightning_compress as lc
    >>> module = lc.SegmentationModule(nn.Conv2d(3, 4, 1), num_classes=4)
    >>> module(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 4, 8, 8])
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        *,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(num_classes, optimizer, lr_scheduler)
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Map images ``(N, C, H, W)`` to logits ``(N, num_classes, H, W)``."""
        return self.model(images)

    def logits_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the logits of the images of a batch, and its masks ``(N, H, W)``."""
        images, masks = batch
        return self(images), masks


class TokenClassificationModule(_PositionsModule):
    """Train a network of the transformers library that classifies tokens, with cross-entropy, from random weights.

    Logs ``train/loss``, ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc`` (accuracy of all tokens) and
    ``test/iou`` (mean intersection over union of the classes, both in [0, 1]). Tokens with the label -100 do not count.

    Args:
        config: Arguments of the network's configuration, with ``model_type``, such as
            ``{"model_type": "bert", "hidden_size": 64}``.
        num_classes: Number of classes.
        optimizer: Function from parameters to the optimizer.
        lr_scheduler: Function from the optimizer to a scheduler, which is stepped once per epoch. By default a cosine
            schedule to zero over the whole run, stepped once per batch.

    Attributes:
        model: The network.

    Raises:
        ImportError: If transformers is not installed.
        ValueError: If ``model_type`` is missing, or the library has no such network.

    >>> import lightning_compress as lc
    >>> size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    >>> module = lc.TokenClassificationModule({"model_type": "bert", "vocab_size": 32, **size}, num_classes=5)
    >>> module(input_ids=torch.ones(2, 6, dtype=torch.long)).shape
    torch.Size([2, 6, 5])
    """

    def __init__(
        self,
        config: dict[str, Any],
        num_classes: int,
        *,
        optimizer: OptimizerCallable = sgd,
        lr_scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__(num_classes, optimizer, lr_scheduler)
        try:
            from transformers import AutoConfig, AutoModelForTokenClassification
        except ImportError as error:
            raise ImportError('Token classification needs transformers: pip install "transformers".') from error
        arguments = {**config, "num_labels": num_classes}
        try:
            made = AutoConfig.for_model(arguments.pop("model_type"), **arguments)
            self.model: nn.Module = AutoModelForTokenClassification.from_config(made)
        except (KeyError, ValueError) as error:
            raise ValueError(
                f"config={config} is not supported: set model_type to a network of transformers that classifies tokens."
            ) from error

    def forward(self, **inputs: Tensor) -> Tensor:
        """Map ``input_ids`` and ``attention_mask``, both ``(N, L)``, to logits ``(N, L, num_classes)``."""
        return self.model(**inputs).logits

    def logits_and_labels(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Return the logits ``(N, C, L)`` of the tokens of a batch, and its labels ``(N, L)``."""
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        return self(**inputs).movedim(-1, 1), batch["labels"]
