"""State of a technique between fits."""

from __future__ import annotations

import weakref
from typing import Any

from torch import nn


class FitState:
    """State to start the next fit from.

    A state that was loaded from a checkpoint serves any model, since Lightning loads callbacks before it is known
    which model is fitted. A state that was kept at the end of a fit serves only the model of that fit.

    Args:
        loaded: State of a checkpoint or of a copied callback.
    """

    def __init__(self, loaded: dict[str, Any] | None = None) -> None:
        self._loaded = loaded
        self._kept: dict[str, Any] | None = None
        self._model: weakref.ref[nn.Module] | None = None

    @property
    def model(self) -> nn.Module | None:
        """The model of the current or last fit, as long as it exists."""
        return None if self._model is None else self._model()

    def load(self, state: dict[str, Any]) -> None:
        """Store a checkpoint's state until the next fit begins."""
        self._loaded = state

    def start_from(self, model: nn.Module) -> dict[str, Any] | None:
        """Return the state to resume from when ``model`` is fitted, or ``None`` to start anew."""
        return self._loaded or (self._kept if self.model is model else None)

    def begin(self, model: nn.Module) -> None:
        """Drop stored states, now that the fit of ``model`` has started from them."""
        self._loaded = self._kept = None
        self._model = weakref.ref(model)

    def keep(self, state: dict[str, Any]) -> None:
        """Store the state of a fit that ends."""
        self._kept = state

    def saved(self) -> dict[str, Any]:
        """Return a copy of the stored state for a checkpoint that is written outside of a fit; may be empty."""
        return dict(self._loaded or self._kept or {})
