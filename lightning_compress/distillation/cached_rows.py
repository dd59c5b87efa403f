"""Files of a logit cache: the rows of consecutive keys, memory-mapped, with a checksum for each row."""

from __future__ import annotations

import errno
import os
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 2**16  # rows per file
SIGNATURE = 16  # values of a sample that are stored to detect another sample under the same key


class CachedRows:
    """Rows of :data:`BLOCK` consecutive keys in one file.

    A row is valid once its last byte is set, and as long as its checksum fits: it covers the key, the signature and the
    logits. Files of version 1 have no checksums; they are read and continued as they are.

    Args:
        path: Path of the file, from :meth:`find` or :meth:`create`.
        block: Number of the block; its first key is ``block * BLOCK``.

    Attributes:
        num_classes: Number of logits in a row.

    Raises:
        ValueError: If the file can neither be read nor extended to its full length.
    """

    def __init__(self, path: Path, block: int) -> None:
        version, _, classes = _match(path)
        self.num_classes = int(classes)
        self._first_key = block * BLOCK
        self._table = _memory_map(path, _row(self.num_classes, has_checksum=version != ""))

    @staticmethod
    def find(directory: Path, block: int) -> CachedRows | None:
        """Open the file of a block, of any version; ``None`` if there is none."""
        paths = (path for path in directory.glob(f"logits-*{block}-*.bin") if _match(path)[1] == str(block))
        path = min(paths, default=None)
        return None if path is None else CachedRows(path, block)

    @staticmethod
    def create(directory: Path, block: int, num_classes: int) -> CachedRows:
        """Create a sparse file of zeros, which takes no disk space until rows are written."""
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"logits-v2-{block}-{num_classes}.bin"
        # Append mode keeps the content if another process has created the file in the meantime.
        with path.open("ab") as file:
            file.truncate(BLOCK * _row(num_classes, has_checksum=True).itemsize)
        return CachedRows(path, block)

    def complete(self, rows: np.ndarray) -> np.ndarray:
        """Return a mask of the rows that have been written, damaged or not."""
        return np.asarray(self._table["complete"][rows] == 1)

    def intact(self, rows: np.ndarray) -> np.ndarray:
        """Return a mask of the rows with a checksum that fits; of version 1, all rows."""
        if "crc32" not in self._table.dtype.names:
            return np.ones(len(rows), dtype=bool)
        found = self._table[rows]
        return np.asarray(found["crc32"] == self._checksums(rows, found["signature"], found["logits"]))

    def signatures(self, rows: np.ndarray) -> np.ndarray:
        """Return the signatures of rows, ``(N, SIGNATURE)``."""
        return self._table["signature"][rows]

    def logits(self, rows: np.ndarray) -> np.ndarray:
        """Return the logits of rows, ``(N, num_classes)``."""
        return self._table["logits"][rows]

    def write(self, rows: np.ndarray, signatures: np.ndarray, logits: np.ndarray) -> None:
        """Write rows.

        Raises:
            PermissionError: If the file is read-only.
        """
        if not self._table.flags.writeable:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        self._table["signature"][rows], self._table["logits"][rows] = signatures, logits
        if "crc32" in self._table.dtype.names:
            self._table["crc32"][rows] = self._checksums(rows, signatures, logits)
        # Last, so that a row is never valid before it is written.
        self._table["complete"][rows] = 1

    def _checksums(self, rows: np.ndarray, signatures: np.ndarray, logits: np.ndarray) -> np.ndarray:
        # The key is covered too: a row that was moved within its file is another one's.
        contents = np.concatenate([signatures, logits], axis=1).astype("<f4", copy=False)
        keys = (self._first_key + rows).astype("<i8")
        pairs = zip(keys, contents, strict=True)
        return np.array([zlib.crc32(row.tobytes(), zlib.crc32(key.tobytes())) for key, row in pairs], dtype="<u4")


def _match(path: Path) -> tuple[str, str, str]:
    """Return version, block and number of classes in the name of a file, all empty if it is none of a cache."""
    found = re.fullmatch(r"logits-(v2-)?(\d+)-(\d{1,7})\.bin", path.name)
    return (found[1] or "", found[2], found[3]) if found else ("", "", "")


def _memory_map(path: Path, row: np.dtype[Any]) -> Any:
    """Map a file, extended to its full length if it was truncated, and read-only if it cannot be written."""
    try:
        return np.memmap(path, row, mode="r+", shape=(BLOCK,))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ValueError(
                f"The cache file {str(path)!r} cannot be opened ({error.strerror}): give another directory."
            ) from error
    if path.stat().st_size < BLOCK * row.itemsize:
        raise ValueError(f"The cache file {str(path)!r} is truncated and cannot be written: give another directory.")
    return np.memmap(path, row, mode="r", shape=(BLOCK,))


def _row(num_classes: int, *, has_checksum: bool) -> np.dtype[Any]:
    """Return the layout of a row, with ``complete`` at its end: a row that was truncated reads it as zero."""
    checksum = [("crc32", "<u4")] if has_checksum else []
    values: list[Any] = [("signature", "<f4", SIGNATURE), ("logits", "<f4", num_classes)]
    return np.dtype([*values, *checksum, ("complete", "u1")])
