"""Packages that come with an extra."""

from __future__ import annotations

from importlib.util import find_spec


def require(*packages: str, extra: str = "export") -> None:
    """Says in one sentence what is missing.

    Raises:
        ImportError: If one of the packages is not installed.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} is missing: pip install 'lightning-compress[{extra}]'.")
