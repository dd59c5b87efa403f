"""Running a file in a process of its own, where nothing is left of the process that wrote it."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lightning_compress.arguments import Arguments


def run_in_subprocess(code: str, path: Path, inputs: Arguments) -> Any:
    """What a fresh Python process leaves in ``outputs.pt``.

    Args:
        code: What it does; it finds the file's path in ``sys.argv[1]`` and the inputs in ``inputs.pt``.
        path: The file.
        inputs: Positional and keyword arguments.

    Raises:
        RuntimeError: If it fails.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with tempfile.TemporaryDirectory() as folder:
        torch.save(inputs, f"{folder}/inputs.pt")
        command = [sys.executable, "-c", code, str(path.resolve())]
        result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
            raise RuntimeError(f"Another process cannot run the {path.suffix} file: {last}")
        return torch.load(f"{folder}/outputs.pt")
