"""Runs of several stages that were cut off, which the same command goes on with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml

from lightning_compress.atomic_files import atomic_write
from lightning_compress.cli.recipes import find

STAGE_FILE = "stage.json"
"""Name of the file in the directory of a stage that says what it was made from, and if it is finished."""

_LOCK_FILE = ".lock"
_held: dict[Path, IO[str]] = {}  # for as long as this process lives


def recipe_digest(recipe: Path, near: Sequence[Path] = ()) -> str:
    """Return a digest of a recipe and of those that it names, which changes with their content.

    Args:
        recipe: Path of the recipe.
        near: Directories in which the recipes that it names are looked for.
    """
    text = recipe.read_text()
    found = hashlib.sha256(text.encode())
    try:
        keys = yaml.safe_load(text)
    except yaml.YAMLError:
        keys = None  # its parser reports that
    for key in ("after", "teacher") if isinstance(keys, dict) else ():
        if isinstance(keys.get(key), str) and not Path(keys[key]).is_dir():
            named = find(keys[key], near=[*near, recipe.absolute().parent])
            found.update(recipe_digest(named, near).encode())
    return found.hexdigest()


def write_stage(directory: Path, digest: str, *, is_finished: bool, metrics: Mapping[str, Any] | None = None) -> None:
    """Write the file of a stage.

    Args:
        directory: Directory of the stage.
        digest: Digest of its configuration.
        is_finished: False while it is running.
        metrics: Metrics that the run after it needs.
    """
    directory.mkdir(parents=True, exist_ok=True)
    content = {"digest": digest, "finished": is_finished, "metrics": dict(metrics or {})}
    with atomic_write(directory / STAGE_FILE) as partial:
        partial.write_text(json.dumps(content))


def finished_metrics(directory: Path, digest: str) -> dict[str, Any] | None:
    """Return the metrics of a stage that is finished, or ``None`` if it is not, or had another configuration."""
    content = _read(directory)
    is_finished = content.get("finished") is True and content.get("digest") == digest
    return content["metrics"] if is_finished and isinstance(content.get("metrics"), dict) else None


def find_cut_run(parent: Path, digest: str) -> Path | None:
    """Return the newest run of a configuration that was cut off after a stage or a checkpoint, and lock it.

    Args:
        parent: Directory of the runs of a recipe.
        digest: Digest of the configuration.
    """
    for directory in sorted(parent.glob("*"), reverse=True):
        if is_cut(directory, digest) and hold(directory):
            return directory
    return None


def is_cut(directory: Path, digest: str) -> bool:
    """Return True for the directory of a run of this configuration that is not finished, but has got somewhere."""
    content = _read(directory)
    if content.get("digest") != digest or content.get("finished") is not False:
        return False
    has_stage = any(path.parent != directory for path in directory.rglob(STAGE_FILE))
    return has_stage or any(directory.rglob("checkpoints/*.ckpt"))


def hold(directory: Path) -> bool:
    """Lock the directory of a run until this process ends; False if another process runs in it, or locks do not work.

    Args:
        directory: Directory of the run, which is made if it does not exist.
    """
    directory = directory.absolute()
    if directory in _held:
        return True
    try:
        import fcntl

        directory.mkdir(parents=True, exist_ok=True)
        file = (directory / _LOCK_FILE).open("w")
    except (ImportError, OSError):  # fcntl is POSIX only
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        return False
    # A process that is killed loses its locks.
    _held[directory] = file
    return True


def release(directory: Path) -> None:
    """Unlock the directory of a run."""
    if (file := _held.pop(directory.absolute(), None)) is not None:
        file.close()
        (directory / _LOCK_FILE).unlink(missing_ok=True)


def _read(directory: Path) -> dict[str, Any]:
    try:
        content = json.loads((directory / STAGE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


_VARIABLE = "LIGHTNING_COMPRESS_GOES_ON"


def tell_ranks(goes_on: bool) -> None:
    """Tell the processes that Lightning starts for other ranks if the run goes on with a cut one."""
    os.environ[_VARIABLE] = str(int(goes_on))


def told_to_go_on() -> bool:
    """Return the answer of rank 0."""
    return os.environ.get(_VARIABLE) == "1"
