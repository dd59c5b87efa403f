"""Image classification with any timm network, or with your own."""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import timm
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics.classification import MulticlassAccuracy

from lightning_compress.models import networks  # noqa: F401  (registers its networks with timm)
from lightning_compress.models.mixup import Mixup
from lightning_compress.models.stem import keep_resolution_
from lightning_compress.models.weights import load_weights_

_MIXING_SEED = "mixing_seed"  # in checkpoints


def sgd(params: Iterable[Any]) -> Optimizer:
    """The default optimizer: SGD at 0.1 with Nesterov momentum 0.9 and weight decay 1e-4."""
    return torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-4)


class ClassificationModule(LightningModule):
    """Trains a network with cross-entropy; logs ``train/loss``, ``val/loss``, ``val/acc``, ``test/loss``, ``test/acc``.

    The network is ``self.model``, so that pruning, reports and exporters find it under one name.

    Args:
        model: A timm name (those of :mod:`lightning_compress.models.networks` included), or a network of your own that maps
            images ``(N, C, H, W)`` to logits ``(N, num_classes)``.
        num_classes: Number of classes.
        optimizer: Makes the optimizer from parameters.
        lr_scheduler: Makes a scheduler from the optimizer, stepped once per epoch. By default the learning rate falls
            to zero along a cosine over the whole run, step by step.
        label_smoothing: Part of the target that is spread over all classes, in [0, 1).
        mixup: Mix training images and their labels. Batches are then mixed once they are on the device, so that
            ``training_step`` and callbacks see targets ``(N, num_classes)``. How a batch is mixed depends on the seed
            of the run and on its place in the run alone, so that a resumed run mixes like an uninterrupted one.
        small_input: For images of about 32x32: the first convolution of a timm network gets stride 1, and a max-pool
            after it is left out.
        checkpoint: File with weights of the network, ``.safetensors``, or ``.pt``, ``.pth`` or ``.ckpt`` as PyTorch or
            Lightning write them; loaded strictly.
        model_kwargs: Further arguments of the timm network, such as ``{in_chans: 1, img_size: 8}``.

    Raises:
        ValueError: For a name that timm does not know, arguments it does not take, a checkpoint that does not fit, and
            ``small_input`` of a network that is not made so. At the start of a fit, if a data module's own hook keeps
            batches from being mixed.

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
        mixup: Mixup | None = None,
        small_input: bool = False,
        checkpoint: str | None = None,
        model_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing={label_smoothing} must lie in [0, 1).")
        # Checkpoints hold it as a dict.
        self.mixup = Mixup(**mixup) if isinstance(mixup, Mapping) else mixup
        # No functions and no networks, which checkpoints must not hold; nor a file of starting weights, since a
        # checkpoint has its own.
        own_network = ["model"] if isinstance(model, nn.Module) else []
        self.save_hyperparameters(ignore=["optimizer", "lr_scheduler", "checkpoint", "mixup", *own_network])
        self.save_hyperparameters({"mixup": self.mixup and asdict(self.mixup)})
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.label_smoothing = label_smoothing
        self._mixing_seed = _seed_of_the_run()
        self.num_classes = num_classes
        arguments = {"num_classes": num_classes, **(model_kwargs or {})}
        self.model = create(model, arguments) if isinstance(model, str) else model
        if small_input:
            keep_resolution_(self.model, model if isinstance(model, str) else type(model).__name__)
        if checkpoint is not None:
            load_weights_(self.model, checkpoint)
        # Lightning tells every user of a data module that this class has the hook, who has not written it.
        warnings.filterwarnings("ignore", ".*overridden `on_after_batch_transfer` in `LightningModule` but have passed")
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, x: Tensor) -> Tensor:
        """Maps images ``(N, C, H, W)`` to logits ``(N, num_classes)``."""
        return self.model(x)

    def on_fit_start(self) -> None:
        """Takes the seed of the run for mixing, unless it resumes another, and checks that nothing prevents mixing."""
        if not self.trainer.ckpt_path:
            self._mixing_seed = _seed_of_the_run()
        datamodule = getattr(self.trainer, "datamodule", None)
        if self.mixup and datamodule is not None and is_overridden("on_after_batch_transfer", datamodule):
            name = type(datamodule).__name__
            raise ValueError(
                f"mixup: {name}.on_after_batch_transfer takes the place of the hook that mixes; do its work in "
                f"{name}.on_before_batch_transfer, or leave mixup out."
            )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the seed for mixing."""
        if self.mixup:
            checkpoint[_MIXING_SEED] = self._mixing_seed

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Goes on with the seed for mixing of the run that is resumed."""
        self._mixing_seed = checkpoint.get(_MIXING_SEED, _seed_of_the_run())

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Mixes training batches; all others stay as they are."""
        if not self.mixup or self._trainer is None or not self.trainer.training:
            return batch
        images, labels = batch
        seed = (self._mixing_seed, self.global_rank, self.current_epoch, self._batch_number)
        return self.mixup.mix(images, labels, self.num_classes, label_smoothing=self.label_smoothing, seed=seed)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy of one batch."""
        images, labels = batch
        loss = self._loss(self(images), labels)
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

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy with classes ``(N,)``, which are smoothed, or with targets ``(N, num_classes)``, which are."""
        if labels.is_floating_point():
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)

    @property
    def _batch_number(self) -> int:
        """Which batch of the epoch is at hand, from 0, resumed runs included."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.current.ready

    def _evaluate(self, batch: tuple[Tensor, Tensor], stage: str, accuracy: MulticlassAccuracy) -> None:
        images, labels = batch
        self._record(self(images), labels, stage, accuracy)

    @torch.compiler.disable  # a metric counts its updates, and code would be compiled for every count
    def _record(self, logits: Tensor, labels: Tensor, stage: str, accuracy: MulticlassAccuracy) -> None:
        accuracy(logits, labels)
        self.log(f"{stage}/loss", F.cross_entropy(logits, labels), prog_bar=stage == "val", sync_dist=True)
        self.log(f"{stage}/acc", accuracy, prog_bar=True)


def _seed_of_the_run() -> int:
    """Of ``seed_everything``, or what PyTorch has taken."""
    return torch.initial_seed() % 2**32


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
