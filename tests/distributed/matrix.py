"""Resume equals an uninterrupted run: techniques, precisions, numbers of processes and stops, as a table.

Each cell makes a run of ten steps, resumes it after steps 3, 5 and 8, and compares the last checkpoints bit by bit:
weights, optimizers, schedulers, gradient scaler and states of the techniques. All of it takes some minutes::

    python -m tests.distributed.matrix
    python -m tests.distributed.matrix --cases cubic dkm --precisions 32 16-mixed --places one ddp

``16-mixed`` runs on the CPU with a gradient scaler, as it would on a GPU. A cell says ``equal``, ``refused`` (by the
technique, as expected), ``no`` with the reason where Lightning or torch have no such run, or at which stop it differs.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from tests.cases import NUM_STEPS, Loader, Net, assert_same, case, load, save_every_step, trainer
from tests.distributed import jobs
from tests.distributed.pool import Pool

STOPS = (3, 5, 8)
PRECISIONS = ("32", "bf16-mixed", "16-mixed")
PLACES = ("one", "ddp", "fsdp2")
CASES = (
    "cubic", "two_of_four", "rigl", "channels", "cluster", "dkm", "qat",
    "prune_and_cluster", "prune_and_cluster_and_qat",
)  # fmt: skip


class Share(Loader):
    """This rank's share of every batch; all of it where there is one process."""

    def __iter__(self) -> Iterator[Any]:
        rank, size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for images, classes in super().__iter__():
            yield images[rank::size], classes[rank::size]


def fit(name: str, place: str, precision: str, folder: Path, ckpt_path: Path | None = None) -> str:
    """Fits a case and saves after every step; returns the message of a refusal."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    # Each run has a seed of its own, since nothing may depend on the global generator.
    torch.manual_seed(sum(folder.name.encode()))
    model = jobs.ShardedNet() if place == "fsdp2" else Net()
    case(name).prepare(model)
    options: dict[str, Any] = {"precision": precision}
    if precision == "16-mixed":
        options = {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0))]}
    if place != "one":
        options |= {"devices": 2, "strategy": jobs.strategy(place), "use_distributed_sampler": False}
    run = trainer([save_every_step(folder), *case(name).callbacks()], **options)
    try:
        run.fit(model, Share(), ckpt_path=ckpt_path)
    except ValueError as error:
        if case(name).refused.get(place, "\n") in str(error):
            return f"refused: {error}"
        raise
    return ""


def state_of(path: Path) -> dict[str, Any]:
    """All of a checkpoint but the paths of files and the progress of loops."""
    checkpoint = load(path)
    callbacks = {key: state for key, state in checkpoint["callbacks"].items() if not key.startswith("ModelCheckpoint")}
    left_out = ("loops", "callbacks", "pytorch-lightning_version")
    return {**{key: value for key, value in checkpoint.items() if key not in left_out}, "callbacks": callbacks}


def cell(name: str, precision: str, place: str, folder: Path, pool: Pool) -> str:
    """The text of a cell."""

    def run(*args: Any) -> str:
        return fit(name, place, precision, *args) if place == "one" else pool(fit, name, place, precision, *args)[0]

    try:
        refusal = run(folder / "whole")
        if refusal:
            return "refused"
        differing = []
        whole = state_of(folder / "whole" / f"step={NUM_STEPS}.ckpt")
        if not all(t.isfinite().all() for t in whole["state_dict"].values() if isinstance(t, Tensor)):
            return "DIFFERS: weights that are not finite"
        for step in STOPS:
            run(folder / f"{step}", folder / "whole" / f"step={step}.ckpt")
            try:
                assert_same(state_of(folder / f"{step}" / f"step={NUM_STEPS}.ckpt"), whole)
            except AssertionError as error:
                differing.append(f"after {step}: {str(error).splitlines()[0]}")
    except Exception as error:
        return f"no: {str(error).strip().splitlines()[-1][:100]}"
    return f"DIFFERS {'; '.join(differing)}" if differing else "equal"


def main() -> None:
    """Print the table; exit with 1 if a cell differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.distributed.matrix", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES, help="names in tests/cases.py")
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--places", nargs="+", default=PLACES, choices=PLACES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool, differs = Pool(), False
    columns = [(precision, place) for precision in options.precisions for place in options.places]
    print("|".join(["| case ", *(f" {precision}, {place} " for precision, place in columns), ""]))
    print("|".join(["", *["---"] * (1 + len(columns)), ""]), flush=True)
    try:
        for name in options.cases:
            cells = []
            for precision, place in columns:
                with tempfile.TemporaryDirectory() as folder:
                    cells.append(cell(name, precision, place, Path(folder), pool))
            differs = differs or any(text.startswith("DIFFERS") for text in cells)
            print("|".join([f"| {name} ", *(f" {text} " for text in cells), ""]), flush=True)
    finally:
        pool.close()
    sys.exit(int(differs))


if __name__ == "__main__":
    main()
