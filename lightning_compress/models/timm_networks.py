"""Networks by their timm name."""

from __future__ import annotations

import difflib
from typing import Any

import timm
from torch import nn

from lightning_compress.models import networks  # noqa: F401  (registers its networks with timm)


def create_network(name: str, arguments: dict[str, Any], *, argument: str = "model") -> nn.Module:
    """Create a timm network, including those that this package registers.

    Args:
        name: Name of the network.
        arguments: Arguments of ``timm.create_model``.
        argument: Name of the argument that names the network, for the error message.

    Raises:
        ValueError: For an unknown name, unsupported arguments, or a network without pretrained weights if they are
            requested.
    """
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3)
        advice = f"did you mean {' or '.join(map(repr, near))}?" if near else "timm.list_models() lists the names."
        raise ValueError(f"{argument}={name!r} is not a timm network; {advice}")
    try:
        return timm.create_model(name, **arguments)
    except TypeError as error:
        model_kwargs = {key: value for key, value in arguments.items() if key not in ("num_classes", "pretrained")}
        raise ValueError(f"model_kwargs={model_kwargs} are not supported by {name!r}: {error}") from error
