"""A small recipe, and commands run in this process."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_compress.cli import main

RECIPE = """\
# Two steps of pruning on digits.
seed_everything: 0
pruning: {sparsity: 0.5, schedule: {end: 0.5}}
model:
  class_path: lightning_compress.ClassificationModule
  init_args: {model: conv4, num_classes: 10, model_kwargs: {in_chans: 1, img_size: 8}}
data: {class_path: lightning_compress.data.DigitsDataModule}
trainer:
  accelerator: cpu
  max_epochs: 1
  limit_train_batches: 2
  limit_val_batches: 1
  limit_test_batches: 1
  logger: false
  enable_progress_bar: false
  enable_model_summary: false
"""


@pytest.fixture
def recipe(workdir: Path) -> Path:
    path = workdir / "small.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture
def error_message(recipe: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail with a one-line message; returns the message."""

    def message_of(*arguments: str, code: int = 2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == code
        printed = capsys.readouterr().err
        messages = [line for line in printed.splitlines() if line.startswith("lightning-compress: ")]
        assert len(messages) == 1, printed
        assert "Traceback" not in printed
        return messages[0].removeprefix("lightning-compress: ")

    return message_of
