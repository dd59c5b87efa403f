"""Execution of an exported file in a fresh Python process, independent of the state of the exporting one."""

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
    """Run Python code in a fresh process and load the ``outputs.pt`` that it saves.

    There is no time limit, as the run of a large network on a busy machine may take any time.

    Args:
        code: The code; it finds the path of the file in ``sys.argv[1]`` and the inputs in ``inputs.pt``.
        path: The exported file.
        inputs: Positional and keyword arguments of the model.

    Raises:
        RuntimeError: If the process fails; with the last line of its error output.
    """
    with tempfile.TemporaryDirectory() as folder:
        torch.save(inputs, f"{folder}/inputs.pt")
        result = run_python(code, path, folder)
        if result.returncode:
            last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
            raise RuntimeError(f"A separate process cannot run the {path.suffix} file: {last}")
        return torch.load(f"{folder}/outputs.pt")


def run_python(code: str, path: Path, folder: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python code in a fresh process that finds what this one does, and wait for its end.

    Args:
        code: The code; it finds the path of the file in ``sys.argv[1]``.
        path: The file.
        folder: Its working directory; this process's own by default.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", code, str(path.resolve())]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
