"""Unique directories for runs."""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from pathlib import Path

# The processes that Lightning starts for other ranks inherit this environment variable.
_VARIABLE = "LIGHTNING_COMPRESS_RUN_DIRECTORY"


def run_directory(name: str, *, rank: int) -> Path:
    """Return the directory of a new run, ``runs/<name>/<time>-<random>``; rank 0 creates it.

    Ranks started by Lightning inherit the directory from rank 0. Ranks started by torchrun or SLURM only know its
    parent; shards of checkpoints are still written to the directory of rank 0, because Lightning broadcasts it.

    Args:
        name: Name of the recipe or command.
        rank: Global rank of this process.
    """
    parent = Path("runs") / name
    if rank > 0:
        return Path(os.environ.get(_VARIABLE, parent))
    directory = make_unique(parent)
    os.environ[_VARIABLE] = str(directory)
    return directory


def make_unique(parent: Path) -> Path:
    """Create a directory that did not exist before, even if several processes start in the same second."""
    while True:
        directory = parent.absolute() / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory


def write_new(path: Path, text: str) -> Path:
    """Write a text file without overwriting: to ``config.yaml``, or else to ``config-2.yaml`` and so on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for number in range(1, 1000):
        candidate = path if number == 1 else path.with_name(f"{path.stem}-{number}{path.suffix}")
        try:
            with candidate.open("x") as file:
                file.write(text)
        except FileExistsError:
            continue
        return candidate
    raise FileExistsError(path)


def adopt_directory(directory: Path) -> Path:
    """Return the directory of an earlier run, and pass it on to the processes of other ranks."""
    os.environ[_VARIABLE] = str(directory.absolute())
    return directory.absolute()


def newest_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint of a run that was written last, or ``None`` if there is none."""
    found = sorted(directory.glob("checkpoints/*.ckpt"), key=lambda path: path.stat().st_mtime)
    return found[-1] if found else None


def best_checkpoint(directory: Path) -> Path | None:
    """Return the checkpoint that a run has tested: the best one that was monitored, else the last; ``None`` if none."""
    newest = newest_checkpoint(directory)
    if newest is None:
        return None
    import torch  # takes seconds, and commands that only read reports do without

    callbacks = torch.load(newest, map_location="cpu", mmap=True, weights_only=True).get("callbacks", {})
    states = [state for state in callbacks.values() if isinstance(state, dict) and state.get("monitor")]
    found = (newest.with_name(Path(state.get("best_model_path", "")).name) for state in states)
    return next((path for path in found if path.is_file()), newest)
