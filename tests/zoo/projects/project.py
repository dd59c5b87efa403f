"""A project: a LightningModule with its data, as someone who has never heard of this package would write it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import LightningModule

import lightning_compress as lc


@dataclass(frozen=True)
class Project:
    """A LightningModule with its training data.

    Attributes:
        make: Returns the module.
        data: Returns a loader, or a list of batches.
        deployed: Name of the submodule that is shipped.
        inputs: Returns inputs of the shipped module.
        teacher: Returns a larger sibling of the shipped module; ``None`` where distillation has no meaning.
        losses: Distillation losses; by default those of the package.
        options: Further arguments of the Trainer.
        targets: What is compressed, where the default would take in more than is shipped, or cannot find it.
        refusals: Parts of the sentences by which techniques are refused.
    """

    make: Callable[[], LightningModule]
    data: Callable[[], Any]
    deployed: str
    inputs: Callable[[], Any]
    teacher: Callable[[], Any] | None = None
    losses: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    targets: lc.Targets = lc.Targets()
    refusals: Mapping[str, str] = field(default_factory=dict)
