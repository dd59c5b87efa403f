"""Bootstrap your own latent: an online network, and a target that is its moving average, updated by zip."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightning.pytorch import LightningModule
from timm import create_model
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import lightning_compress as lc
from tests.zoo.projects.project import Project


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int, out: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BYOL(LightningModule):
    def __init__(self, tau: float = 0.99) -> None:
        super().__init__()
        self.tau = tau
        self.backbone = create_model("test_resnet", num_classes=0, in_chans=3)
        width = self.backbone.num_features
        self.projector = MLP(width, 32, 16)
        self.predictor = MLP(16, 32, 16)
        self.target_backbone = copy.deepcopy(self.backbone)
        self.target_projector = copy.deepcopy(self.projector)
        for parameter in (*self.target_backbone.parameters(), *self.target_projector.parameters()):
            parameter.requires_grad = False

    def loss(self, online: Tensor, target: Tensor) -> Tensor:
        return 2 - 2 * (F.normalize(online, dim=-1) * F.normalize(target, dim=-1)).sum(dim=-1)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        (view1, view2), _ = (batch[0], batch[1]), batch[2]
        p1, p2 = (self.predictor(self.projector(self.backbone(view))) for view in (view1, view2))
        with torch.no_grad():
            z1, z2 = (self.target_projector(self.target_backbone(view)) for view in (view1, view2))
        loss = (self.loss(p1, z2.detach()) + self.loss(p2, z1.detach())).mean()
        self.log("loss", loss)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        pairs = ((self.backbone, self.target_backbone), (self.projector, self.target_projector))
        for online, target in pairs:
            for p, q in zip(online.parameters(), target.parameters(), strict=True):
                q.data = self.tau * q.data + (1 - self.tau) * p.data

    def configure_optimizers(self) -> Any:
        params = [*self.backbone.parameters(), *self.projector.parameters(), *self.predictor.parameters()]
        optimizer = torch.optim.SGD(params, lr=0.03, momentum=0.9, weight_decay=1e-4)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}


def data() -> DataLoader:
    images = torch.randn(16, 3, 32, 32)
    return DataLoader(TensorDataset(images, images.flip(3), torch.zeros(16)), batch_size=8, drop_last=True)


PROJECT = Project(
    BYOL, data, deployed="backbone", targets=lc.Targets(module="backbone"), inputs=lambda: torch.randn(4, 3, 32, 32)
)
