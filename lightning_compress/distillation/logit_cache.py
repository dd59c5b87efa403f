"""What a teacher said, on disk."""

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
_PROBES = 16  # numbers of a sample that are kept to tell it from others


class LogitCache:
    """Logits by key in memory-mapped files, which several processes may read and write at once.

    Beside the logits of a sample stand a few of its numbers: another sample under the same key is an error, not a
    wrong answer. A row counts once it is complete; ranks that write the same row write the same bytes. Rows that a
    file has lost at its end are computed again. Files that may not be written can be read.

    Args:
        directory: Where the files are; it is made where it is not there.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blocks: dict[int, Any] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {"directory": self.directory, "_blocks": {}}

    def logits(self, keys: Tensor, inputs: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits of a batch, from the files or else computed and written.

        Args:
            keys: ``(N,)``, not negative.
            inputs: The samples ``(N, ...)``.
            compute: Maps samples that have no row yet ``(M, ...)`` to logits ``(M, C)``.

        Returns:
            ``(N, C)`` of float32 on the device of the inputs.

        Raises:
            ValueError: If a key stands for another sample or is negative, the files are for another number of classes,
                or cannot be written.
        """
        numbers = keys.cpu().numpy()
        if (numbers < 0).any():
            raise ValueError(f"The key {numbers.min()} is negative: keys of a cache count from 0.")
        probes = _probe(inputs)
        known = self._known(numbers, probes)
        if not known.all():
            missing = torch.from_numpy(~known)
            computed = compute(inputs[missing.to(inputs.device)]).float().cpu().numpy()
            try:
                self._write(numbers[~known], probes[~known], computed)
            except OSError as error:
                where, reason = str(self.directory), error.strerror
                raise ValueError(
                    f"The cache in {where!r} cannot be written ({reason}): give another directory."
                ) from error
            self._known(numbers, probes)  # two samples of the batch may have one key
        return torch.from_numpy(self._read(numbers)).to(inputs.device)

    def _known(self, keys: np.ndarray, probes: np.ndarray) -> np.ndarray:
        known = np.zeros(len(keys), dtype=bool)
        for block, rows, at in self._by_block(keys):
            if (table := self._table(block)) is None:
                continue
            there = table["complete"][rows] == 1
            if not np.array_equal(table["probe"][rows[there]], probes[at[there]], equal_nan=True):
                raise ValueError(
                    f"The cache in {str(self.directory)!r} holds other samples under these keys: what changes samples "
                    "must depend on the key alone (no mixup), and another dataset or Keyed(seed=...) needs a directory "
                    "of its own."
                )
            known[at] = there
        return known

    def _read(self, keys: np.ndarray) -> np.ndarray:
        parts = [(at, self._table(block)["logits"][rows]) for block, rows, at in self._by_block(keys)]
        found = np.empty((len(keys), parts[0][1].shape[1]), dtype=np.float32)
        for at, logits in parts:
            found[at] = logits
        return found

    def _write(self, keys: np.ndarray, probes: np.ndarray, logits: np.ndarray) -> None:
        for block, rows, at in self._by_block(keys):
            table = self._table(block, num_classes=logits.shape[1])
            if table["logits"].shape[1] != logits.shape[1]:
                raise ValueError(
                    f"The cache in {str(self.directory)!r} is of {table['logits'].shape[1]} classes, the teacher has "
                    f"{logits.shape[1]}: give another directory."
                )
            if not table.flags.writeable:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
            table["probe"][rows], table["logits"][rows] = probes[at], logits[at]
            table["complete"][rows] = 1

    def _table(self, block: int, num_classes: int | None = None) -> Any:
        """A file's rows; ``None`` if there is no file and no number of classes to make one."""
        if block not in self._blocks:
            found = next(iter(sorted(self.directory.glob(f"logits-{block}-*.bin"))), None)
            if found is None:
                if num_classes is None:
                    return None
                found = self.directory / f"logits-{block}-{num_classes}.bin"
                self._make(found, num_classes)
            classes = int(found.stem.rpartition("-")[2])
            self._blocks[block] = _mapped(found, classes)
        return self._blocks[block]

    def _make(self, path: Path, num_classes: int) -> None:
        """A file of zeros, which takes no room on disk until it is written; another process may be making it, too."""
        self.directory.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.truncate(_BLOCK * _row(num_classes).itemsize)

    @staticmethod
    def _by_block(keys: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Number of a file, rows in it, and where in the batch they belong."""
        blocks = keys // _BLOCK
        return [(int(b), keys[at] % _BLOCK, at) for b in np.unique(blocks) for at in [np.flatnonzero(blocks == b)]]


def _mapped(path: Path, num_classes: int) -> Any:
    """A file's rows; it is made as long as it should be, and of one that may not be written they are read-only."""
    try:
        return np.memmap(path, _row(num_classes), mode="r+", shape=(_BLOCK,))
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        return np.memmap(path, _row(num_classes), mode="r", shape=(_BLOCK,))


def _row(num_classes: int) -> np.dtype[Any]:
    """What is in a row; where a file has been cut, it lacks ``complete``."""
    return np.dtype([("probe", "<f4", _PROBES), ("logits", "<f4", num_classes), ("complete", "u1")])


def _probe(inputs: Tensor) -> np.ndarray:
    """Numbers from all over each sample, ``(N, 16)``."""
    flat = inputs.detach().flatten(1)
    places = torch.linspace(0, flat.shape[1] - 1, _PROBES, device=flat.device).round().long()
    return flat[:, places].float().cpu().numpy()
