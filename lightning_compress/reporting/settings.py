"""Keys of configurations, flat, and those in which runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a nested mapping with dotted keys, as flags and sweeps write them.

    >>> flat({"pruning": {"sparsity": 0.9}, "seed_everything": 0})
    {'pruning.sparsity': 0.9, 'seed_everything': 0}
    """
    found: dict[str, Any] = {}
    for key, value in config.items():
        is_branch = isinstance(value, Mapping) and value
        found |= flat(value, f"{prefix}{key}.") if is_branch else {f"{prefix}{key}": value}
    # The keys of init_args are flags without that name.
    return {name.replace(".init_args.", "."): value for name, value in found.items()}


def differing(configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return of each configuration the keys, flat, that are not the same in all of them; without the files it is from.

    >>> differing([{"seed": 0, "pruning": {"sparsity": 0.8}}, {"seed": 0, "pruning": {"sparsity": 0.9}}, {"seed": 0}])
    [{'pruning.sparsity': 0.8}, {'pruning.sparsity': 0.9}, {}]
    """
    settings = [flat({key: value for key, value in config.items() if key != "config"}) for config in configs]
    keys = dict.fromkeys(key for found in settings for key in found)
    several = [key for key in keys if any(found.get(key) != settings[0].get(key) for found in settings)]
    return [{key: found[key] for key in several if key in found} for found in settings]
