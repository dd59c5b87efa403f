"""Checks of a parsed configuration, before anything is built or written."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from lightning_compress.cli.config_classes import requires
from lightning_compress.cli.introspection import argument_hints, classes_in

# Values of ckpt_path that Lightning accepts besides a path.
_CHECKPOINT_KEYWORDS = re.compile(r"best$|last$|hpc$|registry")


def check_trainer(trainer: Any) -> None:
    """Raise a ``ValueError`` unless the configuration of the Trainer is a mapping."""
    if not isinstance(trainer, Namespace):
        raise ValueError(f"trainer={trainer} must be a mapping: give the arguments of the Trainer as keys below it.")


def check_specifications(key: str, technique: type, given: Any) -> None:
    """Raise a ``ValueError`` unless the specifications in the configuration of a technique are mappings.

    Args:
        key: Key of the technique.
        technique: Class of its callback.
        given: Its parsed configuration, or ``None``.
    """
    hints = argument_hints(technique)
    for argument, value in vars(given).items() if isinstance(given, Namespace) else ():
        classes = classes_in(hints.get(argument))
        is_specification = bool(classes) and all(dataclasses.is_dataclass(cls) for cls in classes)
        if is_specification and not isinstance(value, (Namespace, dict, type(None))):
            kind = classes[0].__name__
            raise ValueError(
                f"{key}.{argument}={value} must be a mapping: give the arguments of {kind} as keys below it."
            )


def check_required_arguments(key: str, technique: type, given: Any) -> None:
    """Raise a ``ValueError`` if the configuration of a technique lacks an argument that has no default.

    An empty mapping, as in ``--pruning={}``, parses as the arguments with their defaults, and null for the others.

    Args:
        key: Key of the technique.
        technique: Class of its callback.
        given: Its parsed configuration, or ``None``.
    """
    parameters = inspect.signature(technique).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    missing = [name for name in required if isinstance(given, Namespace) and given.get(name) is None]
    if missing:
        raise ValueError(requires(f"{key}: {technique.__name__}", missing, f"{key}.{missing[0]}"))


def check_checkpoint(ckpt_path: Any) -> None:
    """Raise a ``ValueError`` unless ``ckpt_path`` is absent, a keyword of Lightning, an address, or a checkpoint."""
    if not ckpt_path or _CHECKPOINT_KEYWORDS.match(str(ckpt_path)) or "://" in str(ckpt_path):
        return
    if not Path(ckpt_path).exists():
        raise ValueError(f"ckpt_path={ckpt_path} does not exist: give the path of a checkpoint.")
    _check_format(Path(ckpt_path))


def _check_format(path: Path) -> None:
    """Raise a ``ValueError`` for a file that is no PyTorch checkpoint."""
    if path.is_dir():
        return  # sharded
    with path.open("rb") as file:
        start = file.read(16)
    # Checkpoints are ZIP archives, and older ones pickles.
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return
    if path.suffix == ".packed" or start[8:9] == b"{":
        raise ValueError(
            f"ckpt_path={path} is a packed file and not a checkpoint: continue from its run with "
            f"--after={path.parent}, or load it with lightning_compress.load_packed."
        )
    raise ValueError(f"ckpt_path={path} is not a checkpoint of PyTorch: give a .ckpt file that a run has written.")
