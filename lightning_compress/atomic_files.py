"""Atomic replacement of files and directories."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path in the directory of ``path`` and rename it to ``path`` if the block raises nothing.

    The parent directory is created if it does not exist. After an exception the temporary file is deleted and a file
    that existed at ``path`` is unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # The same directory, because a rename is atomic only within one file system.
    partial = target.with_name(f".{secrets.token_hex(4)}.{target.name}")
    try:
        yield partial
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``, and rename the directory that the block creates there if it succeeds.

    After an exception the temporary directory is deleted and a directory that existed at ``path`` is unchanged.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (target.with_name(f".{secrets.token_hex(4)}.{target.name}") for _ in range(2))
    try:
        yield partial
        # No directory can be renamed to one that has files.
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
    finally:
        for directory in (partial, old):
            shutil.rmtree(directory, ignore_errors=True)
