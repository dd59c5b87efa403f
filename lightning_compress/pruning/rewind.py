"""Rewinding of weights or of the learning rate after each update of the masks."""

from __future__ import annotations

from abc import ABC
from dataclasses import dataclass
from typing import ClassVar

from lightning_compress.schedules import check_time


@dataclass(frozen=True)
class Rewind(ABC):
    """Base class of rewinding rules: after every update of the masks, state returns to its value at time ``to``.

    Args:
        to: Time in optimizer steps (int), as a fraction of the run (float in [0, 1]), or in epochs (such as ``"2ep"``).

    Raises:
        ValueError: If ``to`` is not a valid time.
    """

    to: int | float | str = 0

    weights: ClassVar[bool]
    """True if weights return as well as the learning rate."""

    def __post_init__(self) -> None:
        check_time("to", self.to)


@dataclass(frozen=True)
class RewindWeights(Rewind):
    """Rewind active weights, biases, norms and the learning-rate schedule, and reset the optimizer state.

    Frankle et al. 2020 (arXiv:1903.01611).

    Args:
        to: Time in optimizer steps (int), as a fraction of the run (float in [0, 1]), or in epochs (such as ``"2ep"``).

    Raises:
        ValueError: If ``to`` is not a valid time.

    >>> RewindWeights("2ep")
    RewindWeights(to='2ep')
    """

    weights: ClassVar[bool] = True


@dataclass(frozen=True)
class RewindLearningRate(Rewind):
    """Rewind only the learning-rate schedule, and train on from the current weights.

    Renda et al. 2020 (arXiv:2003.02389).

    Args:
        to: Time in optimizer steps (int), as a fraction of the run (float in [0, 1]), or in epochs (such as ``"2ep"``).

    Raises:
        ValueError: If ``to`` is not a valid time.

    >>> RewindLearningRate(0.1)
    RewindLearningRate(to=0.1)
    """

    weights: ClassVar[bool] = False
