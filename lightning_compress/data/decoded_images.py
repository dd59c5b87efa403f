"""Image folders decoded to one tensor, and kept in a cache."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.datasets import ImageFolder
from torchvision.transforms.functional import pil_to_tensor

from lightning_compress.atomic_files import atomic_write
from lightning_compress.data.images import Batch

FEWEST_CACHED = 5000
"""Number of images from which decoding takes so long that a bar is shown and the result is cached."""


def decode_images(folder: ImageFolder) -> Batch:
    """Decode all images of a folder to a uint8 tensor ``(N, 3, H, W)`` and int64 labels ``(N,)``.

    Many images are decoded once: the tensor is cached in ``$XDG_CACHE_HOME/lightning-compress`` (``~/.cache`` by
    default) under a digest of the names, sizes and modification times of the files.

    Args:
        folder: Images of equal size.
    """
    labels = torch.tensor(folder.targets)
    paths = [path for path, _ in folder.samples]
    if len(paths) < FEWEST_CACHED:
        return _decode(folder, paths), labels
    cached = cache_directory() / f"images-{_digest(paths)}.safetensors"
    # A damaged file is decoded again.
    with suppress(Exception):
        return load_file(cached)["images"], labels
    from rich.progress import track

    images = _decode(folder, track(paths, description=f"Decoding {folder.root}"))
    with suppress(OSError), atomic_write(cached) as partial:  # a read-only or full disk costs time only
        save_file({"images": images}, partial)
    return images, labels


def cache_directory() -> Path:
    """Return the directory of cached images."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning-compress"


def _decode(folder: ImageFolder, paths: Iterable[str]) -> Tensor:
    return torch.stack([pil_to_tensor(folder.loader(path)) for path in paths])


def _digest(paths: Sequence[str]) -> str:
    found = hashlib.sha256()
    for path in paths:
        status = os.stat(path)
        found.update(f"{os.path.abspath(path)}\n{status.st_size}\n{status.st_mtime_ns}\n".encode())
    return found.hexdigest()[:32]
