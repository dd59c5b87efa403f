"""Runs of networks, each in a process of its own with a time limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.zoo.cells import Cell
from tests.zoo.techniques import TECHNIQUES

REPOSITORY = Path(__file__).parents[2]
LIMIT = 120
"""Seconds that a network may take."""


def run(technique: str, name: str) -> list[Cell]:
    """Measure the columns of a technique for one network, in a process of its own."""
    command = [sys.executable, "-m", "tests.zoo.worker", technique, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        result = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
        )
        printed, failure = result.stdout, f"EXCEPTION {_last_line(result.stderr) or f'exit {result.returncode}'}"
    except subprocess.TimeoutExpired as error:
        printed, failure = (error.stdout or b"").decode(), "HANG"
    cells = [Cell(**json.loads(line)) for line in printed.splitlines() if line.startswith('{"title"')]
    # What the process did not come to is missing: it hung, or crashed.
    return [*cells, *(Cell(column.title, failure=failure) for column in TECHNIQUES[technique][len(cells) :])]


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1][:200]
