"""Checks for the packages of an optional extra."""

from __future__ import annotations

from importlib.util import find_spec


def require(*packages: str, extra: str = "export") -> None:
    """Check that packages are installed.

    Args:
        packages: Names of the packages.
        extra: The extra of this package that installs them.

    Raises:
        ImportError: If one of the packages is not installed.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ImportError(f"{', '.join(missing)} is missing: pip install 'lightning-compress[{extra}]'.")
