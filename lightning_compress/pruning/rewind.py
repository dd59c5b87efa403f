"""Going back to an earlier state after each update of the masks."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

from lightning_compress.schedules import check_time


@dataclass(frozen=True)
class Rewind(ABC):
    """What returns to its state at time ``to`` after every update of the masks.

    Args:
        to: Time whose state is kept: an int (optimizer steps), a float (fraction of the run) or ``"2ep"``.
    """

    to: int | float | str = 0

    weights: ClassVar[bool]
    """Whether weights return too, not only the learning rate."""

    def __post_init__(self) -> None:
        check_time("to", self.to)


@dataclass(frozen=True)
class RewindWeights(Rewind):
    """Live weights, biases, norms and the learning-rate schedule return; optimizer state is forgotten.

    Frankle et al. 2020 (arXiv:1903.01611).
    """

    weights: ClassVar[bool] = True


@dataclass(frozen=True)
class RewindLearningRate(Rewind):
    """Only the learning-rate schedule returns. Renda et al. 2020 (arXiv:2003.02389)."""

    weights: ClassVar[bool] = False
