"""SegmentationModule and TokenClassificationModule: positions without a label do not count, and they learn."""

from __future__ import annotations

import sys

import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.utils.data import DataLoader

import lightning_compress as lc
from lightning_compress.data import ShapesDataModule, TaggedTokensDataModule
from lightning_compress.models.classification import sgd

BERT = {
    "model_type": "bert", "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 32,
}  # fmt: skip


def adam(params):
    return torch.optim.Adam(params, lr=5e-3)


def trainer(max_epochs: int = 1) -> Trainer:
    return Trainer(
        max_epochs=max_epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


class Constant(nn.Module):
    """Logits of class 1 everywhere, with a parameter that does nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.0, 2.0, 0.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits[None, :, None, None].expand(len(images), 3, *images.shape[2:])


def test_the_metrics_of_pixels_are_those_of_pixels_with_a_label():
    module = lc.SegmentationModule(Constant(), 3)
    masks = torch.tensor([[[1, 1, 0], [2, -100, -100]]])
    data = [(torch.zeros(1, 3, 2, 3), masks)]
    (metrics,) = trainer().test(module, DataLoader(data, batch_size=None), verbose=False)
    assert metrics["test/acc"] == 0.5
    # Class 1: two right of four predicted; the other two are never predicted.
    assert metrics["test/iou"] == pytest.approx((2 / 4 + 0 + 0) / 3)
    log_probability = torch.tensor([0.0, 2.0, 0.0]).log_softmax(0)
    expected = -(2 * log_probability[1] + 2 * log_probability[0]) / 4
    assert metrics["test/loss"] == pytest.approx(float(expected))


def test_segmentation_is_learned():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 16, 5, padding=2), nn.ReLU(), nn.Conv2d(16, 3, 5, padding=2))
    module = lc.SegmentationModule(network, 3, optimizer=adam)
    data = ShapesDataModule(image_size=32, num_train=128, batch_size=8)
    learning = trainer(6)
    learning.fit(module, data)
    assert learning.test(module, data, verbose=False)[0]["test/iou"] > 0.8


def test_tags_are_learned_from_the_sentence():
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    module = lc.TokenClassificationModule(BERT, 5, optimizer=adam)
    data = TaggedTokensDataModule(num_train=1024)
    learning = trainer(6)
    learning.fit(module, data)
    # From the token alone, about half of the tags are right.
    assert learning.test(module, data, verbose=False)[0]["test/acc"] > 0.95


def test_padding_changes_no_logits_and_counts_in_no_metric():
    pytest.importorskip("transformers")
    module = lc.TokenClassificationModule(BERT, 5).eval()
    tokens = torch.randint(1, 64, (1, 6))
    padded = {"input_ids": nn.functional.pad(tokens, (0, 3)), "attention_mask": torch.tensor([[1] * 6 + [0] * 3])}
    with torch.no_grad():
        plain = module(input_ids=tokens, attention_mask=torch.ones_like(tokens))
        torch.testing.assert_close(module(**padded)[:, :6], plain)
    labels = torch.tensor([[*plain.argmax(-1)[0].tolist(), -100, -100, -100]])
    (metrics,) = trainer().test(module, DataLoader([{**padded, "labels": labels}], batch_size=None), verbose=False)
    assert metrics["test/acc"] == 1.0


@pytest.mark.parametrize("config", [{}, {"model_type": "nothing"}, {"model_type": "vit"}])
def test_another_network_is_named(config):
    pytest.importorskip("transformers")
    with pytest.raises(ValueError, match="set model_type to a network of transformers that classifies tokens"):
        lc.TokenClassificationModule(config, 5)


def test_transformers_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match='pip install "transformers"'):
        lc.TokenClassificationModule(BERT, 5)


def test_the_cosine_schedule_is_that_of_classification():
    module = lc.SegmentationModule(nn.Conv2d(3, 3, 1), 3, optimizer=sgd)
    learning = trainer(2)
    learning.fit(module, ShapesDataModule(image_size=32, num_train=32))
    assert learning.optimizers[0].param_groups[0]["lr"] == pytest.approx(0, abs=1e-6)
