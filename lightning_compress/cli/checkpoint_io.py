"""Atomic writing of Lightning checkpoints."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO

from lightning_compress.atomic_files import atomic_write


class DiskFullError(OSError):
    """Raised when a file cannot be written for lack of space; an existing file is unchanged."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """CheckpointIO that writes a temporary file in the target directory and renames it when it is complete.

    Lightning's own plugin serializes the checkpoint in memory and writes it through the system's temporary directory;
    if that is on another file system, the last move is a copy that can leave a truncated checkpoint.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Save a checkpoint.

        Args:
            checkpoint: Checkpoint dictionary.
            path: Local path; Lightning's implementation handles remote ones.
            storage_options: Passed on to Lightning's implementation.

        Raises:
            DiskFullError: If there is not enough space; a file that existed at ``path`` is unchanged.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        try:
            with atomic_write(path) as partial, partial.open("xb") as file:
                torch.save(checkpoint, file)
                # Some file systems report a full disk only when buffers are flushed.
                file.flush()
                os.fsync(file.fileno())
        except Exception as error:
            if _is_disk_full(error):
                raise DiskFullError(
                    f"No space left to write {path}: it was not written, and an existing file is unchanged; free "
                    "disk space or choose another directory with --trainer.default_root_dir."
                ) from error
            raise


def _is_disk_full(error: BaseException | None) -> bool:
    """Return True if a full disk, a quota or a file size limit is the cause of an error.

    The whole chain of exceptions is searched, because PyTorch's writer raises a RuntimeError of its own.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False
