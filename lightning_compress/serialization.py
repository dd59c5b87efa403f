"""Specifications as plain data and back, so that checkpoints hold nothing that ``weights_only=True`` refuses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any


def to_plain(value: Any) -> Any:
    """Frozen dataclasses, in lists and dicts too, as jsonargparse writes them: ``class_path`` and ``init_args``.

    A type, such as :class:`Targets` has them, becomes its ``type_path``.

    >>> from lightning_compress.schedules import QATSchedule
    >>> to_plain(QATSchedule())["class_path"]
    'lightning_compress.schedules.QATSchedule'
    """
    if is_dataclass(value) and not isinstance(value, type):
        arguments = {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
        return {"class_path": f"{type(value).__module__}.{type(value).__qualname__}", "init_args": arguments}
    if isinstance(value, type):
        return {"type_path": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    return value


def from_plain(value: Any) -> Any:
    """What :func:`to_plain` was given, but for tuples, which have become lists.

    Raises:
        ValueError: If a ``class_path`` names no dataclass, or one that does not take the ``init_args``.
    """
    if isinstance(value, Mapping) and set(value) == {"class_path", "init_args"}:
        specification = _dataclass(value["class_path"])
        try:
            return specification(**from_plain(value["init_args"]))
        except TypeError as error:
            raise ValueError(f"init_args do not fit class_path={value['class_path']!r}: {error}.") from error
    if isinstance(value, Mapping) and set(value) == {"type_path"}:
        return _found(value["type_path"], "type_path")
    if isinstance(value, Mapping):
        return {key: from_plain(item) for key, item in value.items()}
    return [from_plain(item) for item in value] if isinstance(value, list) else value


def _dataclass(path: str) -> Any:
    found = _found(path, "class_path")
    if not is_dataclass(found):
        raise ValueError(f"class_path={path!r} is no specification: it must name a dataclass.")
    return found


def _found(path: str, what: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what}={path!r} is not to be found: {error}.") from error
    if not isinstance(found, type):
        raise ValueError(f"{what}={path!r} is no class.")
    return found
