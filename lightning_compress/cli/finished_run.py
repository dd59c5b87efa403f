"""Files with which one run hands its network to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

import lightning_compress as lc

NETWORK_FILE, REMOVAL_FILE = "model.packed", "removal.json"
PREVIOUS_RUN = "before"
"""Name of the subdirectory of a run that contains the previous stage."""


class FinishedRun:
    """Network that a finished run has saved in its directory.

    Args:
        directory: Directory of the run.

    Attributes:
        log: Channels that were removed from the network, empty if there were none.

    Raises:
        ValueError: If the directory contains no network.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        if not (directory / NETWORK_FILE).is_file():
            previous = directory / PREVIOUS_RUN
            alternative = f", or run its recipe again with --after={previous}, which is finished"
            raise ValueError(
                f"after={directory}: {NETWORK_FILE} not found; give the directory of a finished run"
                f"{alternative if (previous / NETWORK_FILE).is_file() else ''}."
            )
        removal = directory / REMOVAL_FILE
        self.log = lc.RemovalLog.load(removal) if removal.is_file() else lc.RemovalLog()

    def load_into(self, model: LightningModule) -> str:
        """Remove the channels and load the weights in the submodule that has the architecture of the network.

        Returns:
            Name of the submodule.

        Raises:
            ValueError: If no submodule has the same state dict keys.
        """
        weights = lc.load_packed(self.directory / NETWORK_FILE)
        assert isinstance(weights, dict)
        name = next((name for name, module in model.named_modules() if set(module.state_dict()) == set(weights)), None)
        if name is None:
            raise ValueError(
                f"after={self.directory}: no module of the model has the state dict keys of {NETWORK_FILE}, such as "
                f"{next(iter(weights))!r}: configure the same network."
            )
        network = model.get_submodule(name)
        self.log.replay_(network)
        lc.load_packed(self.directory / NETWORK_FILE, into=network)
        return name


def remove_channels_(network: nn.Module, inputs: Any) -> lc.RemovalLog:
    """Physically remove the masked channels of a network, in place.

    Args:
        network: Network; it is moved to the CPU.
        inputs: Example inputs of the network.

    Returns:
        Log of the removed channels.
    """
    small, log = lc.shrink(network.cpu(), inputs)
    # In place, because the LightningModule keeps its reference to the network.
    log.replay_(network)
    network.load_state_dict(small.state_dict())
    return log
