"""The README's Python, run as it stands on a LightningModule that knows nothing of this package."""

import re
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn

import lightning_compress as lc
from lightning_compress.data import DigitsDataModule

README = Path(__file__).parents[1] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)


class Foreign(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-2)


def test_one_line_integration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    model = Foreign()
    exec(BLOCKS[0], {"model": model, "datamodule": DigitsDataModule()})
    weights = lc.report(model).weights
    assert (weights.num_weights, weights.num_zeros) == (2368, 2131)
    assert "89.99%" in capsys.readouterr().out
    assert list(model.state_dict()) == ["net.1.weight", "net.1.bias", "net.3.weight", "net.3.bias"]


@pytest.mark.parametrize("block", BLOCKS[1:])
def test_further_examples(block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "from ray" in block:
        pytest.importorskip("ray", reason="Ray is not installed")
    monkeypatch.chdir(tmp_path)
    model, datamodule = Foreign(), DigitsDataModule()
    datamodule.setup("fit")
    batches = [images for images, _ in datamodule.train_dataloader()][:2]

    def loss(net: nn.Module, images: Tensor) -> Tensor:
        return net(images).square().mean()

    teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    exec(block, {"lc": lc, "Trainer": Trainer, "model": model, "datamodule": datamodule, "images": batches[0],
                 "net": model.net, "batches": batches, "loss": loss, "teacher": teacher})  # fmt: skip


def test_two_command_lines_open_it() -> None:
    lines = [line for line in README.read_text().splitlines() if line.startswith("python3 -m venv")]
    assert len(lines) == 2
    assert lines[0].endswith("lightning-compress run recipes/digits/deep_compression.yaml")
    assert lines[1].endswith("-m pytest -n 2")


def test_the_sample_output_is_that_of_the_command() -> None:
    """The columns, and not the figures, which depend on the machine."""
    sample = README.read_text().partition("```text\n")[2].partition("```")[0]
    assert "model          ┃    accuracy [95 %] ┃   bytes ┃   MACs ┃ latency" in sample
    assert (README.parent / "recipes/images/deep_compression.png").is_file()
