"""Mutation testing: each line of a file is broken in turn, and a test has to fail.

Tests of an area are collected once, with the lines that each runs. A mutant is tried in a fork of that process: the
code of the broken function is replaced, and the tests that run its line are run, quick ones first, until one fails.
Code that runs at import is broken before it is imported, which takes seconds. Survivors are printed with their line;
those in ``explained.py`` compute the same, or differ only where these tests do not see it, and are counted apart.
Limits of memory and time, which are constants in capitals, are not broken, and neither are messages. Needs Linux::

    python -m tests.mutation                         # all mutants of all areas: about an hour
    python -m tests.mutation constraints callbacks
    python -m tests.mutation packing/reader.py functional --sample 25 --seed 1
"""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Sequence
from pathlib import Path

from tests.mutation.trials import PACKAGE, ROOT, Area, Outcome, try_area

# Files or folders of the package, and the tests, or options of pytest, that have to notice.
AREAS = {
    "constraints": (["constraints"], ["constraints", "test_doctests.py::test_examples[constraints]"]),
    "functional": (["functional"], ["functional", "test_doctests.py::test_examples[functional]"]),
    "packing": (["packing"], ["packing", "test_doctests.py::test_examples[packing]"]),
    "callbacks": (
        [
            "pruning/callback.py", "clustering/callback.py", "quantization/callback.py",
            "trainer/constraint_callback.py", "trainer/compression_callback.py",
        ],
        [
            "pruning/test_callback.py", "pruning/test_narrowed_norms.py", "pruning/test_snapshot.py",
            "clustering/test_callback.py", "quantization/test_callback.py", "trainer",
            "contracts/test_clusters.py", "contracts/test_errors.py", "contracts/test_resume.py",
            "contracts/test_selection.py", "contracts/test_zeros.py", "lifecycle/test_irregular_fits.py",
            "lifecycle/test_optimization.py", "lifecycle/test_fits.py",
            # One optimizer is enough.
            "-k not sgd and not average and not (every_moment and adamw)",
        ],
    ),
}  # fmt: skip
# Imported once, before processes are forked; the package and its tests are not.
LIBRARIES = ("torch", "lightning.pytorch", "pytest", "hypothesis", "torchmetrics", "timm", "jsonargparse", "scipy")


def files_of(area: str, chosen: Sequence[str]) -> list[Path]:
    """Files of an area that are asked for by its name, or by their path or folder in the package."""
    paths = [PACKAGE / path for path in AREAS[area][0]]
    files = [f for path in paths for f in (sorted(path.rglob("*.py")) if path.is_dir() else [path])]
    asked = [f for f in files if area in chosen or any((PACKAGE / c) in (f, *f.parents) for c in chosen)]
    return [f for f in asked if f.name != "__init__.py"]


def row(area: str, outcomes: Sequence[Outcome], seed: int) -> str:
    """Return the line of an area in the table."""
    missed = [outcome for outcome in outcomes if outcome.noticed_by is None]
    explained, total = sum(outcome.explanation is not None for outcome in missed), len(outcomes)
    survived = len(missed) - explained
    share = survived / max(1, total)
    return f"| {area} | {total} | {total - len(missed)} | {explained} | {survived} | {share:.1%} | {seed} |"


def main() -> None:
    """Print survivors as they are found, and a table of areas."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__.split("\n")[0])
    parser.add_argument("chosen", nargs="*", default=[*AREAS], help=f"{', '.join(AREAS)}, or files or folders in them")
    parser.add_argument("--sample", type=int, help="number of mutants of each file, drawn at random; all by default")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--budget", type=float, default=60.0, help="seconds of tests after which a mutant is said to survive"
    )
    options = parser.parse_args()
    os.chdir(ROOT)
    os.environ["OMP_NUM_THREADS"] = "1"
    for library in LIBRARIES:
        importlib.import_module(library)
    rows = []
    for area, (_, tests) in AREAS.items():
        files = files_of(area, options.chosen)
        if files:
            arguments = [path if path.startswith("-") else str(ROOT / "tests" / path) for path in tests]
            outcomes = list(try_area(Area(files, arguments, options.sample, options.seed, options.budget)))
            rows.append(row(area, outcomes, options.seed))
    print(
        "| area | mutants | noticed | explained | survived | share | seed |", "|---|---|---|---|---|---|---|", sep="\n"
    )
    print(*rows, sep="\n")


if __name__ == "__main__":
    main()
