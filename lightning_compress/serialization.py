"""Conversion of specifications to plain data and back, so that checkpoints load with ``weights_only=True``."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from importlib import import_module
from typing import Any

import torch


def plain_mapping(value: Any) -> Any:
    """Return a mapping as a dict, with the objects that a configuration of OmegaConf stands for; others as they are.

    Mappings of configuration libraries refer to the whole configuration, which would get into copies and checkpoints.

    >>> from types import MappingProxyType
    >>> plain_mapping(MappingProxyType({"fc": 0.5})), plain_mapping(0.5)
    ({'fc': 0.5}, 0.5)
    """
    omegaconf = sys.modules.get("omegaconf")  # imported already, if the value is of its classes
    if omegaconf is not None and omegaconf.OmegaConf.is_config(value):
        value = omegaconf.OmegaConf.to_object(value)
    return dict(value) if isinstance(value, Mapping) else value


def to_plain(value: Any) -> Any:
    """Convert frozen dataclasses, also inside lists and mappings, to ``class_path`` and ``init_args`` as jsonargparse.

    A type, such as those in :class:`Targets`, becomes its ``type_path``; tuples become lists.

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
    """Invert :func:`to_plain`, except that tuples outside specifications stay lists.

    Plain data come from checkpoints, which may be malicious: only classes of this package, torch, timm and lightning
    are imported, and classes that the user has allowed with ``torch.serialization.add_safe_globals``.

    Raises:
        ValueError: If a ``class_path`` does not name a dataclass that is allowed, or the dataclass does not accept the
            ``init_args``.

    >>> from lightning_compress.schedules import QATSchedule
    >>> from_plain(to_plain(QATSchedule())) == QATSchedule()
    True
    """
    if isinstance(value, Mapping) and set(value) == {"class_path", "init_args"}:
        specification = _import_dataclass(value["class_path"])
        try:
            return specification(**from_plain(value["init_args"]))
        except (TypeError, AttributeError, LookupError, ArithmeticError) as error:
            raise ValueError(f"init_args do not fit class_path={value['class_path']!r}: {error}.") from error
    if isinstance(value, Mapping) and set(value) == {"type_path"}:
        return _import_class(value["type_path"], "type_path")
    if isinstance(value, Mapping):
        return {key: from_plain(item) for key, item in value.items()}
    return [from_plain(item) for item in value] if isinstance(value, list) else value


def check_class_paths(value: Any) -> None:
    """Check that all classes that plain data name are allowed, without importing any of them.

    Raises:
        ValueError: If a ``class_path`` or ``type_path`` names another class.

    >>> check_class_paths({"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}})
    """
    if isinstance(value, Mapping):
        for key in _PATH_KEYS & set(value):
            _check_allowed(value[key], key)
    for item in value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple)) else ():
        check_class_paths(item)


_PATH_KEYS = {"class_path", "type_path"}
_PACKAGES = ("lightning_compress", "torch", "timm", "lightning")


def _import_dataclass(path: Any) -> Any:
    cls = _import_class(path, "class_path")
    # Nothing but dataclasses is called: a checkpoint must not be able to run arbitrary code.
    if not is_dataclass(cls):
        raise ValueError(f"class_path={path!r} is not a specification: it must name a dataclass.")
    return cls


def _import_class(path: Any, key: str) -> Any:
    _check_allowed(path, key)
    if path in _safe_classes():
        return _safe_classes()[path]
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except Exception as error:  # optional modules of the packages fail with errors of any kind
        reason = " ".join(str(error).split())
        raise ValueError(f"{key}={path!r} cannot be imported: {reason}.") from error
    if not isinstance(cls, type):
        raise ValueError(f"{key}={path!r} is not a class.")
    # The packages import others, under whose names nothing may be reached.
    _check_allowed(f"{cls.__module__}.{cls.__qualname__}", key)
    return cls


def _check_allowed(path: Any, key: str) -> None:
    # Importing a module runs its code, and a file of that name may lie in the working directory.
    package, *names = str(path).split(".")
    is_ours = isinstance(path, str) and package in _PACKAGES and names and "__main__" not in names
    if not is_ours and str(path) not in _safe_classes():
        raise ValueError(
            f"{key}={path!r} is not imported, because a checkpoint may only name classes of {', '.join(_PACKAGES)}: "
            "if you trust it, call torch.serialization.add_safe_globals([the class]) first."
        )


def _safe_classes() -> dict[Any, type]:
    """Return the classes that the user has allowed, by their paths."""
    # Entries are objects, or pairs of an object and its path.
    pairs = (entry if isinstance(entry, tuple) else (entry, "") for entry in torch.serialization.get_safe_globals())
    found = ((path or f"{cls.__module__}.{cls.__qualname__}", cls) for cls, path in pairs if isinstance(cls, type))
    return {path: cls for path, cls in found if not path.startswith("builtins.")}
