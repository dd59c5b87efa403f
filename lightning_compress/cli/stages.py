"""The network that a run begins with, when another run has made it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

import lightning_compress as lc

NETWORK, REMOVAL = "model.packed", "removal.json"
BEFORE = "before"
"""The directory, in that of a run, of the run that it begins with."""


class Start:
    """What a finished run has left in its directory.

    Args:
        directory: That directory.

    Raises:
        ValueError: If it has no network.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not (directory / NETWORK).is_file():
            before = directory / BEFORE
            instead = f", or run its recipe again with --after={before}, which is finished"
            raise ValueError(
                f"after={directory}: there is no {NETWORK} in it; give the directory of a finished run"
                f"{instead if (before / NETWORK).is_file() else ''}."
            )
        removal = directory / REMOVAL
        self.log = lc.RemovalLog.load(removal) if removal.is_file() else lc.RemovalLog()

    def into(self, model: LightningModule) -> str:
        """Gives the network's shapes and weights to the part of a model that is built like it.

        Returns:
            The part's name.

        Raises:
            ValueError: If no part is.
        """
        weights = lc.load_packed(self.directory / NETWORK)
        assert isinstance(weights, dict)
        part = next((name for name, module in model.named_modules() if set(module.state_dict()) == set(weights)), None)
        if part is None:
            raise ValueError(
                f"after={self.directory}: no part of the model is built like the network in it, which begins with "
                f"{next(iter(weights))!r}: configure the same network."
            )
        network = model.get_submodule(part)
        self.log.replay_(network)
        lc.load_packed(self.directory / NETWORK, into=network)
        return part


def remove_channels_(network: nn.Module, inputs: Any) -> lc.RemovalLog:
    """Removes from a network the channels that are masked.

    Args:
        network: The network.
        inputs: What it is called with.
    """
    small, log = lc.shrink(network.cpu(), inputs)
    log.replay_(network)
    network.load_state_dict(small.state_dict())
    return log
