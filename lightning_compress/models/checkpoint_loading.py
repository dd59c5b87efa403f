"""Loading of Lightning checkpoints whose hyperparameters may name classes."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from lightning.pytorch import LightningModule

from lightning_compress.serialization import check_class_paths


class CheckedModule(LightningModule):
    """LightningModule that imports no unknown classes for the hyperparameters of a checkpoint.

    In checkpoints of a LightningCLI, jsonargparse builds the hyperparameters and imports every ``class_path``.
    """

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: str | Path | IO[bytes], *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint as :meth:`lightning.pytorch.LightningModule.load_from_checkpoint` does.

        Args:
            checkpoint_path: Path, URL or open file.
            args: Further positional arguments of Lightning's method.
            kwargs: Keyword arguments of Lightning's method; after ``weights_only=False``, with which a checkpoint can
                run any code, classes are not checked.

        Raises:
            ValueError: If the hyperparameters name a class of a package other than this one, torch, timm and
                lightning, that was not allowed with ``torch.serialization.add_safe_globals``.
        """
        if kwargs.get("weights_only") is not False and "://" not in str(checkpoint_path):
            for hparams in _hyperparameters(_load(checkpoint_path)):
                if "_instantiator" in hparams:
                    check_class_paths(hparams)
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)


def _hyperparameters(checkpoint: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    # Lightning still reads the keys of its first versions.
    for key in ("hyper_parameters", "hparams", "module_arguments"):
        if isinstance(checkpoint.get(key), Mapping):
            yield checkpoint[key]


def _load(source: str | Path | IO[bytes]) -> dict[str, Any]:
    if isinstance(source, (str, Path)):
        # Memory-mapped, so that weights are not read twice; only files of before 2020 are no archives.
        return torch.load(source, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(source))
    start = source.tell()
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    finally:
        source.seek(start)
