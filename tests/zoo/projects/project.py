"""A project: a LightningModule with its data, as someone who has never heard of this package would write it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule


@dataclass(frozen=True)
class Project:
    """A LightningModule with its training data.

    Attributes:
        make: Returns the module.
        data: Returns a loader, or a list of batches.
        deployed: Name of the submodule that is shipped.
        inputs: Returns inputs of the shipped module.
        teacher: Returns a larger sibling of the shipped module; ``None`` where distillation has no meaning.
    """

    make: Callable[[], LightningModule]
    data: Callable[[], Any]
    deployed: str
    inputs: Callable[[], Any]
    teacher: Callable[[], Any] | None = None
