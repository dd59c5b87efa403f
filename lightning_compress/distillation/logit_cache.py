"""Cache of a teacher's logits in memory-mapped files."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_BLOCK = 2**16  # samples per file
_SIGNATURE = 16  # values of a sample that are stored to detect another sample under the same key


class LogitCache:
    """Logits by key in memory-mapped files that several processes may read and write at the same time.

    Each row also stores a few values of its sample: another sample under the same key raises an error instead of
    returning wrong logits. A row is valid once its last byte is set. Rows lost by truncation of a file are computed
    again. Read-only files can be read.

    Args:
        directory: Directory of the files; created when the first row is written.
    """

    # No locks: ranks that compute the same row write the same bytes.

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blocks: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        # Memory maps would be pickled by value; a copy opens the files again.
        return {"directory": self.directory, "_blocks": {}}

    def logits(self, keys: Tensor, inputs: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the logits of a batch from the cache, after computing and storing those that are missing.

        Args:
            keys: Non-negative integers ``(N,)``.
            inputs: Samples ``(N, ...)``.
            compute: Function from samples ``(M, ...)`` to logits ``(M, C)``, called once with all missing samples.

        Returns:
            Logits ``(N, C)`` in float32 on the device of the inputs.

        Raises:
            ValueError: If a key is negative or belongs to another sample, or the files have another number of classes
                or cannot be written.
        """
        numbers = keys.cpu().numpy()
        if (numbers < 0).any():
            raise ValueError(f"The key {numbers.min()} is negative: keys of a cache must count from 0.")
        signatures = _signatures(inputs)
        cached = self._find_cached(numbers, signatures)
        if not cached.all():
            missing = torch.from_numpy(~cached)
            computed = compute(inputs[missing.to(inputs.device)]).float().cpu().numpy()
            try:
                self._write(numbers[~cached], signatures[~cached], computed)
            except OSError as error:
                where, reason = str(self.directory), error.strerror
                raise ValueError(
                    f"The cache in {where!r} cannot be written ({reason}): give another directory."
                ) from error
            # Two samples of this batch may share a key, which shows only after both have been written.
            self._find_cached(numbers, signatures)
        return torch.from_numpy(self._read(numbers)).to(inputs.device)

    def _find_cached(self, keys: np.ndarray, signatures: np.ndarray) -> np.ndarray:
        """Return a mask ``(N,)`` of the keys with a valid row, after comparing the signatures of those rows."""
        cached = np.zeros(len(keys), dtype=bool)
        for block, rows, positions in self._by_block(keys):
            if (table := self._table(block)) is None:
                continue
            complete = table["complete"][rows] == 1
            if not np.array_equal(table["signature"][rows[complete]], signatures[positions[complete]], equal_nan=True):
                raise ValueError(
                    f"The cache in {str(self.directory)!r} holds other samples under these keys: augmentation must "
                    "depend on the key alone (no mixup), and another dataset or Keyed(seed=...) needs its own "
                    "directory."
                )
            cached[positions] = complete
        return cached

    def _read(self, keys: np.ndarray) -> np.ndarray:
        blocks = [(positions, self._table(block)["logits"][rows]) for block, rows, positions in self._by_block(keys)]
        result = np.empty((len(keys), blocks[0][1].shape[1]), dtype=np.float32)
        for positions, logits in blocks:
            result[positions] = logits
        return result

    def _write(self, keys: np.ndarray, signatures: np.ndarray, logits: np.ndarray) -> None:
        for block, rows, positions in self._by_block(keys):
            table = self._table(block, num_classes=logits.shape[1])
            if table["logits"].shape[1] != logits.shape[1]:
                raise ValueError(
                    f"The cache in {str(self.directory)!r} has {table['logits'].shape[1]} classes, the teacher has "
                    f"{logits.shape[1]}: give another directory."
                )
            if not table.flags.writeable:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            table["signature"][rows], table["logits"][rows] = signatures[positions], logits[positions]
            # Last, so that a row is never valid before it is written.
            table["complete"][rows] = 1

    def _table(self, block: int, num_classes: int | None = None) -> Any:
        """Return the rows of a file, or None if it does not exist and ``num_classes`` to create it is not given."""
        if block not in self._blocks:
            path = next(iter(sorted(self.directory.glob(f"logits-{block}-*.bin"))), None)
            if path is None:
                if num_classes is None:
                    return None
                path = self.directory / f"logits-{block}-{num_classes}.bin"
                self._create(path, num_classes)
            self._blocks[block] = _memory_map(path, num_classes=int(path.stem.rpartition("-")[2]))
        return self._blocks[block]

    def _create(self, path: Path, num_classes: int) -> None:
        """Create a sparse file of zeros, which takes no disk space until rows are written."""
        self.directory.mkdir(parents=True, exist_ok=True)
        # Append mode keeps the content if another process has created the file in the meantime.
        with path.open("ab") as file:
            file.truncate(_BLOCK * _row(num_classes).itemsize)

    @staticmethod
    def _by_block(keys: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Group keys by file: its number, the rows in it, and the positions of their keys in the batch."""
        blocks = keys // _BLOCK
        groups = [(int(block), np.flatnonzero(blocks == block)) for block in np.unique(blocks)]
        return [(block, keys[positions] % _BLOCK, positions) for block, positions in groups]


def _memory_map(path: Path, num_classes: int) -> Any:
    """Map a file, extended to its full length if it was truncated, and read-only if it cannot be written."""
    try:
        return np.memmap(path, _row(num_classes), mode="r+", shape=(_BLOCK,))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return np.memmap(path, _row(num_classes), mode="r", shape=(_BLOCK,))


def _row(num_classes: int) -> np.dtype[Any]:
    """Return the layout of a row, with ``complete`` at its end: a row that was truncated reads it as zero."""
    return np.dtype([("signature", "<f4", _SIGNATURE), ("logits", "<f4", num_classes), ("complete", "u1")])


def _signatures(inputs: Tensor) -> np.ndarray:
    """Return values at evenly spaced positions of each sample, ``(N, 16)`` in float32."""
    flat = inputs.detach().flatten(1)
    positions = torch.linspace(0, flat.shape[1] - 1, _SIGNATURE, device=flat.device).round().long()
    return flat[:, positions].float().cpu().numpy()
