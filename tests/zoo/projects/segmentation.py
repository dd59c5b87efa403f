"""Segmentation with segmentation-models-pytorch: Dice loss, statistics gathered over the epoch, a network by name."""

from __future__ import annotations

from typing import Any

import segmentation_models_pytorch as smp
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import lightning_compress as lc
from tests.zoo.projects.project import Project


class PetModel(LightningModule):
    def __init__(
        self, arch: str = "Unet", encoder_name: str = "timm-mobilenetv3_small_minimal_100", **kwargs: Any
    ) -> None:
        super().__init__()
        self.model = smp.create_model(
            arch, encoder_name=encoder_name, encoder_weights=None, in_channels=3, classes=1,
            decoder_channels=(32, 16, 16, 8, 8), **kwargs,
        )  # fmt: skip
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1))
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1))
        self.loss_fn = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
        self.training_step_outputs: list[dict[str, Tensor]] = []

    def forward(self, image: Tensor) -> Tensor:
        return self.model((image - self.mean) / self.std)

    def shared_step(self, batch: dict[str, Tensor], stage: str) -> dict[str, Tensor]:
        image, mask = batch["image"], batch["mask"]
        assert image.ndim == 4
        h, w = image.shape[2:]
        assert h % 32 == 0
        assert w % 32 == 0
        logits = self.forward(image)
        loss = self.loss_fn(logits, mask)
        predicted = (logits.sigmoid() > 0.5).float()
        tp, fp, fn, tn = smp.metrics.get_stats(predicted.long(), mask.long(), mode="binary")
        return {"loss": loss, "tp": tp, "fp": fp, "fn": fn, "tn": tn}

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        info = self.shared_step(batch, "train")
        self.training_step_outputs.append(info)
        return info

    def on_train_epoch_end(self) -> None:
        stats = [torch.cat([x[k] for x in self.training_step_outputs]) for k in ("tp", "fp", "fn", "tn")]
        self.log("train_iou", smp.metrics.iou_score(*stats, reduction="micro"), prog_bar=True)
        self.training_step_outputs.clear()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10, eta_min=1e-5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1}}


class Pets(Dataset):
    """Disks on noise."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        grid = torch.linspace(-1, 1, 32)
        mask = ((grid[None] ** 2 + grid[:, None] ** 2) < 0.1 * (index + 1)).float()[None]
        return {"image": mask + 0.3 * torch.randn(3, 32, 32), "mask": mask}


def teacher() -> Any:
    return smp.Unet("resnet18", encoder_weights=None, classes=1)


PROJECT = Project(
    PetModel,
    lambda: DataLoader(Pets(), batch_size=4),
    deployed="model",
    inputs=lambda: torch.randn(2, 3, 32, 32),
    teacher=teacher,
    losses={"kd": lc.LogitMSE()},
)
