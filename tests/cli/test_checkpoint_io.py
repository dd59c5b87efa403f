"""A checkpoint that cannot be written leaves an existing one unchanged."""

import resource
from pathlib import Path

import pytest
import torch

from lightning_compress.cli import main
from lightning_compress.cli.checkpoint_io import AtomicCheckpointIO, DiskFullError


@pytest.fixture
def full_disk():
    """Limits files to 10 kB, beyond which writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_saves_and_replaces(tmp_path):
    io = AtomicCheckpointIO()
    for value in (1, 2):
        io.save_checkpoint({"value": value}, tmp_path / "deep" / "a.ckpt")
        assert io.load_checkpoint(tmp_path / "deep" / "a.ckpt", weights_only=True) == {"value": value}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["a.ckpt"]


def test_full_disk_loses_nothing(tmp_path, request):
    io = AtomicCheckpointIO()
    io.save_checkpoint({"value": 1}, tmp_path / "a.ckpt")
    request.getfixturevalue("full_disk")
    with pytest.raises(DiskFullError, match=r"a\.ckpt: it was not written"):
        io.save_checkpoint({"value": torch.randn(10_000)}, tmp_path / "a.ckpt")
    assert io.load_checkpoint(tmp_path / "a.ckpt", weights_only=True) == {"value": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.ckpt"]


def test_other_errors_are_not_reported_as_a_full_disk(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"value": lambda: None}, tmp_path / "a.ckpt")
    assert not any(tmp_path.iterdir())


def test_the_command_reports_a_full_disk(recipe, full_disk, capsys):
    Path("here/checkpoints").mkdir(parents=True)
    Path("here/checkpoints/precious.ckpt").write_text("as it was")
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config=small.yaml", "--trainer.default_root_dir=here"])
    assert stopped.value.code == 1
    printed = capsys.readouterr().err
    assert "lightning-compress: No space left to write" in printed
    assert "Traceback" not in printed
    assert [path.name for path in Path("here/checkpoints").iterdir()] == ["precious.ckpt"]
