"""Checkpoints in the directories of runs."""

import os

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_compress.cli.run_directory import best_checkpoint, newest_checkpoint


class WorseEachEpoch(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(2, 1)

    def training_step(self, batch, batch_idx):
        self.log("epoch_number", float(self.current_epoch))
        return self.net(batch).sum()

    def configure_optimizers(self):
        return None


def test_the_best_checkpoint_is_not_the_last_one(tmp_path):
    keep = ModelCheckpoint(tmp_path / "checkpoints", monitor="epoch_number", mode="min", save_last=True)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(default_root_dir=tmp_path, max_epochs=2, accelerator="cpu", callbacks=[keep], **quiet)
    trainer.fit(WorseEachEpoch(), DataLoader(torch.ones(2, 2)))
    os.utime(tmp_path / "checkpoints/last.ckpt")
    assert newest_checkpoint(tmp_path).name == "last.ckpt"
    assert best_checkpoint(tmp_path).name == "epoch=0-step=2.ckpt"
    # Without a best one that is still there, the last.
    best_checkpoint(tmp_path).unlink()
    assert best_checkpoint(tmp_path).name == "last.ckpt"


def test_a_run_without_checkpoints_has_none(tmp_path):
    assert best_checkpoint(tmp_path) is None
