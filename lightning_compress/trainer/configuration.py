"""Configuration of a technique in the state that it resumes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from lightning_compress.serialization import to_plain


def configuration_of(technique: object, options: Sequence[str]) -> dict[str, Any]:
    """Return some attributes of a technique as plain data; an object that is no specification by its class alone.

    >>> from lightning_compress.schedules import Schedule
    >>> configuration_of(Schedule(end=0.5), ["end", "curve"])
    {'end': 0.5, 'curve': 'cubic'}
    """
    return {option: _storable(to_plain(getattr(technique, option))) for option in options}


def check_same_configuration(technique: str, stored: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Compare the configuration in a state with that of the technique that resumes from it.

    Args:
        technique: Name for the message.
        stored: Result of :func:`configuration_of` in the state; options that are missing in it are not compared.
        current: The present one.

    Raises:
        ValueError: If an option differs.

    >>> check_same_configuration("Pruning", {"sparsity": 0.5}, {"sparsity": 0.9})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
        ...
    ValueError: Pruning resumes from a state with sparsity=0.5 and now has sparsity=0.9: ...
    """
    for option in current:
        if option in stored and _differs(stored[option], current[option]):
            raise ValueError(
                f"{technique} resumes from a state with {option}={_text(stored[option])} and now has "
                f"{option}={_text(current[option])}: pass the same value, or load the weights alone to start anew."
            )


def _differs(stored: Any, current: Any) -> bool:
    """Return True if two options differ; of a specification, fields that earlier releases lacked are not compared."""
    if not (isinstance(stored, Mapping) and isinstance(current, Mapping) and "class_path" in {*stored} & {*current}):
        return bool(stored != current)
    # By the name of the class, which may have moved to another module since.
    names = {each["class_path"].rpartition(".")[2] for each in (stored, current)}
    arguments, ours = stored.get("init_args", {}), current.get("init_args", {})
    return len(names) > 1 or any(name not in ours or arguments[name] != ours[name] for name in arguments)


def _storable(value: Any) -> Any:
    """Reduce leaves to what loads with ``weights_only=True``, so that equal numbers of any library are equal."""
    if isinstance(value, Mapping):
        return {key: _storable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, str):
        return str(value)
    return float(value) if isinstance(value, Real) else f"{type(value).__module__}.{type(value).__qualname__}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping) and set(value) == {"class_path", "init_args"}:
        arguments = ", ".join(f"{name}={_text(item)}" for name, item in value["init_args"].items())
        return f"{value['class_path'].rpartition('.')[2]}({arguments})"
    return repr(value)
