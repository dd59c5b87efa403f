"""Strict loading of a network's weights from a file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from lightning_compress.arguments import reason


def load_weights_(model: nn.Module, path: str | Path) -> None:
    """Load the weights of a network in place.

    Args:
        model: The network.
        path: A ``.safetensors`` file, or a ``.pt``, ``.pth`` or ``.ckpt`` file with a state dict or a Lightning
            checkpoint. Names may have the prefix of the network in a :class:`ClassificationModule` or
            :class:`DistillationModule`.

    Raises:
        ValueError: If the file does not exist or contains no weights, or its names or shapes differ from the network's.
    """
    try:
        model.load_state_dict(_without_prefix(_read(Path(path)), model))
    except RuntimeError as error:
        raise ValueError(f"checkpoint={str(path)!r} belongs to another network: {mismatch(error)}.") from error


def mismatch(error: RuntimeError) -> str:
    """Return the first difference in an error of ``load_state_dict`` as a short clause.

    >>> mismatch(RuntimeError('Error(s) in loading ...: Missing key(s) in state_dict: "a.weight", "b.weight".'))
    "it lacks 'a.weight'"
    """
    text = " ".join(str(error).split())
    for pattern, clause in _MISMATCHES.items():
        if match := re.search(pattern, text):
            return clause.format(*match.groups())
    return text


# Prefixes of the network in a ClassificationModule, and in a DistillationModule around one or around another module.
_PREFIXES = ("model.", "student.model.", "student.")
_MISMATCHES = {
    r'Missing key\(s\) in state_dict: "([^"]+)"': "it lacks {0!r}",
    r'Unexpected key\(s\) in state_dict: "([^"]+)"': "it has {0!r}, which the model lacks",
    r"size mismatch for (\S+): .*?Size\((.*?)\).*?Size\((.*?)\)": "{0!r} is {1} in the file and {2} in the model",
}


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(f"checkpoint={str(path)!r} does not exist: give the path of a file with weights.")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        stored: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"checkpoint={str(path)!r} cannot be read as weights: {reason(error)}.") from error
    stored = stored.get("state_dict", stored) if isinstance(stored, dict) else {}
    tensors = {name: value for name, value in stored.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"checkpoint={str(path)!r} contains no weights: give a state dict or a Lightning checkpoint.")
    return tensors


def _without_prefix(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of the network inside a LightningModule, without its other tensors."""
    names = set(model.state_dict())
    # Only where no name fits as it is: a network may itself have a child called "model".
    for prefix in _PREFIXES if not names & set(weights) else ():
        inner = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if names & set(inner):
            return inner
    return weights
