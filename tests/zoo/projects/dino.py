"""Self-distillation without labels: several views, a momentum teacher, a head with a weight norm, and centering."""

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


class Head(nn.Module):
    def __init__(self, dim: int, out: int = 32) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(dim, 32), nn.GELU(), nn.Linear(32, 16))
        self.last_layer = nn.utils.parametrizations.weight_norm(nn.Linear(16, out, bias=False))
        self.last_layer.parametrizations.weight.original0.data.fill_(1)
        self.last_layer.parametrizations.weight.original0.requires_grad = False

    def forward(self, x: Tensor) -> Tensor:
        return self.last_layer(F.normalize(self.mlp(x), dim=-1, p=2))


class DINO(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.student_backbone = create_model("test_vit", num_classes=0, img_size=32)
        self.student_head = Head(self.student_backbone.num_features)
        self.teacher_backbone = copy.deepcopy(self.student_backbone).requires_grad_(False)
        self.teacher_head = Head(self.student_backbone.num_features).requires_grad_(False)
        self.teacher_head.load_state_dict(self.student_head.state_dict())
        self.register_buffer("center", torch.zeros(1, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.student_backbone(x)

    @torch.no_grad()
    def momentum_update(self, m: float = 0.99) -> None:
        for student, teacher in (
            (self.student_backbone, self.teacher_backbone),
            (self.student_head, self.teacher_head),
        ):
            for p, q in zip(student.parameters(), teacher.parameters(), strict=True):
                q.mul_(m).add_(p.detach(), alpha=1 - m)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.momentum_update()
        (images,) = batch
        views = [images, images.flip(3), images.roll(2, 2)]
        students = [self.student_head(self.student_backbone(view)) / 0.1 for view in views]
        with torch.no_grad():
            logits = [self.teacher_head(self.teacher_backbone(view)) for view in views[:2]]
            targets = [F.softmax((each - self.center) / 0.04, dim=-1) for each in logits]
            self.center = self.center * 0.9 + torch.cat(logits).mean(0, keepdim=True) * 0.1
        losses = [
            -(target * F.log_softmax(student, dim=-1)).sum(-1).mean()
            for i, target in enumerate(targets)
            for j, student in enumerate(students)
            if i != j
        ]
        return torch.stack(losses).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW((p for p in self.parameters() if p.requires_grad), lr=1e-3)


def data() -> DataLoader:
    return DataLoader(TensorDataset(torch.randn(16, 3, 32, 32)), batch_size=8)


PROJECT = Project(
    DINO,
    data,
    deployed="student_backbone",
    targets=lc.Targets(module="student_backbone"),
    inputs=lambda: torch.randn(4, 3, 32, 32),
)
