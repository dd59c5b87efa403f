"""Classification of sentence pairs by Auto classes of transformers, with a data module and torchmetrics."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy
from transformers import AutoConfig, AutoModelForSequenceClassification

from tests.zoo.projects.project import Project


def network(hidden: int = 32) -> Any:
    sizes = {"vocab_size": 100, "dim": hidden, "n_layers": 1, "n_heads": 4, "hidden_dim": 2 * hidden}
    config = AutoConfig.for_model("distilbert", num_labels=3, **sizes)
    return AutoModelForSequenceClassification.from_config(config)


class GLUEDataModule(LightningDataModule):
    loader_columns = ("input_ids", "attention_mask", "labels")

    def setup(self, stage: str) -> None:
        ids = torch.randint(3, 100, (32, 12))
        self.dataset = [
            {"input_ids": row, "attention_mask": torch.ones(12, dtype=torch.long), "labels": row[0] % 3} for row in ids
        ]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=8, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.dataset, batch_size=8)


class GLUETransformer(LightningModule):
    def __init__(self, learning_rate: float = 2e-3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = network()
        self.metric = MetricCollection({"acc": MulticlassAccuracy(3)})
        self.outputs: list[dict[str, Tensor]] = []

    def setup(self, stage: str) -> None:
        self.num_labels = 3

    def forward(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        return self(**batch)[0]

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> Tensor:
        val_loss, logits = self(**batch)[:2]
        self.outputs.append({"loss": val_loss, "preds": logits.argmax(1), "labels": batch["labels"]})
        return val_loss

    def on_validation_epoch_end(self) -> None:
        preds, labels = (torch.cat([x[key] for x in self.outputs]) for key in ("preds", "labels"))
        self.log("val_loss", torch.stack([x["loss"] for x in self.outputs]).mean(), prog_bar=True)
        self.log_dict(self.metric(preds, labels), prog_bar=True)
        self.outputs.clear()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.model.parameters(), lr=self.hparams.learning_rate)


PROJECT = Project(
    GLUETransformer,
    GLUEDataModule,
    deployed="model",
    inputs=lambda: {"input_ids": torch.randint(3, 100, (4, 12))},
    teacher=lambda: network(64),
)
