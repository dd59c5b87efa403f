"""Versions, commit and machine of a run."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import lightning_compress

_PACKAGES = ("lightning-compress", "torch", "lightning", "timm", "wandb", "onnxruntime", "onnx", "executorch")


def environment() -> dict[str, str]:
    """Return the versions of packages, the commit of the working directory and the CPU."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    found |= {name: number for name in _PACKAGES if (number := package_version(name))}
    commit = _commit(Path.cwd()) or _commit(Path(lightning_compress.__file__).parent)
    return {**found, "commit": commit or "none", "CPU": _cpu(), "CPU cores": str(os.cpu_count())}


def package_version(name: str) -> str:
    """Return the version of an installed package, or an empty string."""
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def command_line() -> str:
    """Return the command line of this process, without the directory of the program."""
    program, *arguments = sys.argv or ["lightning-compress"]
    name = "lightning-compress" if Path(program).name in ("lightning-compress", "__main__.py") else Path(program).name
    return shlex.join([name, *arguments])


def _commit(directory: Path) -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=directory, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or "unknown"
