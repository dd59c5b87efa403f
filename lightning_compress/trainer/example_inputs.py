"""Example inputs of a model that is about to be fitted."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

from lightning.pytorch import LightningModule


def given_inputs(pl_module: LightningModule, example_inputs: Any) -> Any:
    """Return the example inputs, or those of the module if none are given."""
    return example_inputs if example_inputs is not None else pl_module.example_input_array


def common_ancestors(layers: Sequence[str]) -> list[str]:
    """Return the names of the modules that contain all layers, the outermost (``""``) first.

    >>> common_ancestors(["net.body.conv1", "net.body.conv2"])
    ['', 'net', 'net.body']
    """
    levels = zip(*(layer.split(".")[:-1] for layer in layers), strict=False)
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    return [".".join(shared[:depth]) for depth in range(len(shared) + 1)]
