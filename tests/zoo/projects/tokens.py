"""Token classification with transformers: the network computes its own loss from labels with -100 for padding."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import BertConfig, BertForTokenClassification, get_linear_schedule_with_warmup

from tests.zoo.projects.project import Project

LABELS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]


def network(hidden: int = 32, layers: int = 1) -> BertForTokenClassification:
    config = BertConfig(
        vocab_size=100, hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=2 * hidden, max_position_embeddings=32, num_labels=len(LABELS),
    )  # fmt: skip
    return BertForTokenClassification(config)


class NERModule(LightningModule):
    def __init__(self, lr: float = 5e-4) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = network()
        self.predictions: list[Tensor] = []

    def forward(self, **inputs: Tensor) -> Any:
        return self.model(**inputs)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        outputs = self(**batch)
        self.log("train_loss", outputs.loss)
        return outputs[0]

    def configure_optimizers(self) -> Any:
        no_decay = ["bias", "LayerNorm.weight"]
        groups = [
            {"params": [p for n, p in self.model.named_parameters() if not any(nd in n for nd in no_decay)]},
            {"params": [p for n, p in self.model.named_parameters() if any(nd in n for nd in no_decay)]},
        ]
        groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.01, 0.0
        optimizer = torch.optim.AdamW(groups, lr=self.hparams.lr)
        steps = self.trainer.estimated_stepping_batches
        scheduler = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=1, num_training_steps=steps)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]


def collate(lengths: list[int]) -> dict[str, Tensor]:
    longest = max(lengths)
    mask = torch.stack([torch.arange(longest) < n for n in lengths]).long()
    ids = torch.randint(3, 100, mask.shape) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask > 0, ids % 5, -100)}


def data() -> DataLoader:
    return DataLoader([5, 9, 12, 7, 10, 11, 6, 8], batch_size=4, collate_fn=collate)  # type: ignore[arg-type]


PROJECT = Project(
    NERModule,
    data,
    deployed="model",
    inputs=lambda: {"input_ids": torch.randint(3, 100, (4, 12))},
    teacher=lambda: network(64, 2),
)
