"""Cache of a teacher's logits in memory-mapped files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from lightning_compress.distillation.cached_rows import BLOCK, SIGNATURE, CachedRows


class LogitCache:
    """Logits by key in memory-mapped files that several processes may read and write at the same time.

    Each row also stores a few values of its sample: another sample under the same key raises an error instead of
    returning wrong logits. Rows that are damaged or lost by truncation of a file are computed again. Read-only files
    can be read.

    Args:
        directory: Directory of the files; created when the first row is written.
    """

    # No locks: ranks that compute the same row write the same bytes.

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._blocks: dict[int, CachedRows] = {}

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
        """Return a mask ``(N,)`` of the keys with an intact row, after comparing the signatures of those rows."""
        cached, num_damaged = np.zeros(len(keys), dtype=bool), 0
        for block, rows, positions in self._by_block(keys):
            if (file := self._rows(block)) is None:
                continue
            intact = file.complete(rows)
            complete = int(intact.sum())
            intact[intact] = file.intact(rows[intact])
            num_damaged += complete - int(intact.sum())
            if not np.array_equal(file.signatures(rows[intact]), signatures[positions[intact]], equal_nan=True):
                raise ValueError(
                    f"The cache in {str(self.directory)!r} holds other samples under these keys: augmentation must "
                    "depend on the key alone (no mixup), and another dataset or Keyed(seed=...) needs its own "
                    "directory."
                )
            cached[positions] = intact
        if num_damaged:
            warnings.warn(
                f"The cache in {str(self.directory)!r} has {num_damaged} damaged rows in a batch, which are computed "
                "again: check the disk.",
                stacklevel=2,
            )
        return cached

    def _read(self, keys: np.ndarray) -> np.ndarray:
        blocks = [(positions, self._blocks[block].logits(rows)) for block, rows, positions in self._by_block(keys)]
        result = np.empty((len(keys), blocks[0][1].shape[1]), dtype=np.float32)
        for positions, logits in blocks:
            if logits.shape[1] != result.shape[1]:
                self._refuse_classes(logits.shape[1], result.shape[1])
            result[positions] = logits
        return result

    def _write(self, keys: np.ndarray, signatures: np.ndarray, logits: np.ndarray) -> None:
        for block, rows, positions in self._by_block(keys):
            file = self._rows(block)
            if file is None:
                file = self._blocks[block] = CachedRows.create(self.directory, block, logits.shape[1])
            if file.num_classes != logits.shape[1]:
                self._refuse_classes(file.num_classes, logits.shape[1])
            file.write(rows, signatures[positions], logits[positions])

    def _refuse_classes(self, cached: int, computed: int) -> NoReturn:
        raise ValueError(
            f"The cache in {str(self.directory)!r} has {cached} classes, the teacher has {computed}: give another "
            "directory."
        )

    def _rows(self, block: int) -> CachedRows | None:
        """Return the rows of a block, or None if it has no file yet."""
        if block not in self._blocks and (found := CachedRows.find(self.directory, block)) is not None:
            self._blocks[block] = found
        return self._blocks.get(block)

    @staticmethod
    def _by_block(keys: np.ndarray) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Group keys by file: its number, the rows in it, and the positions of their keys in the batch."""
        blocks = keys // BLOCK
        groups = [(int(block), np.flatnonzero(blocks == block)) for block in np.unique(blocks)]
        return [(block, keys[positions] % BLOCK, positions) for block, positions in groups]


def _signatures(inputs: Tensor) -> np.ndarray:
    """Return values at evenly spaced positions of each sample, ``(N, 16)`` in float32."""
    flat = inputs.detach().flatten(1)
    positions = torch.linspace(0, flat.shape[1] - 1, SIGNATURE, device=flat.device).round().long()
    return flat[:, positions].float().cpu().numpy()
