"""Checkpoint files that are complete or not there."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io import TorchCheckpointIO


class DiskFull(OSError):
    """A file could not be written; what was there before is as it was."""


class BesideThenRename(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it when it is complete.

    Lightning writes to the system's temporary directory and moves the file, which is a copy over the old file where
    that directory is on another disk; and it holds the whole file in memory.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Saves a checkpoint.

        Args:
            checkpoint: What to save.
            path: A local path; others are left to Lightning.
            storage_options: Left to Lightning.

        Raises:
            DiskFull: If there is no room. A file that was at ``path`` is untouched.
        """
        if "://" in str(path) or storage_options is not None:
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
        try:
            with partial.open("xb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        except BaseException as error:
            with contextlib.suppress(OSError):
                partial.unlink()
            if _is_full(error):
                raise DiskFull(
                    f"There is no room for {target}: it was not written, and a file that was there is untouched; "
                    "free space, or write elsewhere with --trainer.default_root_dir."
                ) from error
            raise


def _is_full(error: BaseException | None) -> bool:
    """Whether the disk, a quota or a limit on files was exceeded, as PyTorch's writer may only say in passing."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__ or error.__context__
    return False
