"""A directory for every run."""

from __future__ import annotations

import os
import secrets
from datetime import datetime
from pathlib import Path

# Handed down to the processes that Lightning starts for the other ranks.
_VARIABLE = "LIGHTNING_COMPRESS_RUN_DIRECTORY"


def run_directory(name: str, *, rank: int) -> Path:
    """The directory of a new run, ``runs/<name>/<time>-<random>``; on rank 0 it is made.

    Ranks that Lightning starts get it from their parent. Those that torchrun or SLURM start know only where it will
    be; what is written there by other ranks than 0 (shards of checkpoints) goes where rank 0 says, since Lightning
    broadcasts that directory.

    Args:
        name: Of the recipe or command.
        rank: Of this process among all.
    """
    parent = Path("runs") / name
    if rank > 0:
        return Path(os.environ.get(_VARIABLE, parent))
    directory = claim(parent)
    os.environ[_VARIABLE] = str(directory)
    return directory


def claim(parent: Path) -> Path:
    """Makes a directory that no one else has, however many try in the same second."""
    while True:
        directory = parent.absolute() / f"{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"
        try:
            directory.mkdir(parents=True)
        except FileExistsError:
            continue
        return directory


def write_new(path: Path, text: str) -> Path:
    """Writes a text file beside those that are there: ``config.yaml``, or else ``config-2.yaml`` and so on."""
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
