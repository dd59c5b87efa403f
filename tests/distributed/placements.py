"""Each technique on several devices against one process, as a table: the README of this folder.

Each cell makes a run of ten steps on the union of the same data, and compares the weights, masks and scales that it
ends with with those of one process on a model that is built in ``__init__``, in the same precision. All of it takes a
quarter of an hour on two cores::

    python -m tests.distributed.placements
    python -m tests.distributed.placements --cases qat --places fsdp2-2 fsdp2-4 --precisions 32

A cell says ``equal`` (to the last bit), ``<= 1e-5`` for the smallest power of ten that bounds all differences of the
state dict, ``refused`` (by a sentence that names the technique), or ``no`` with the error. Sums over ranks are in
another order than those of one process, and bf16 rounds the gradients of each rank: a weight at a threshold may then be
pruned in one run and another weight in the other. Masks that differ are counted.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
import warnings
from functools import cache
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

import lightning_compress as lc
from tests.cases import Loader, Net, case, trainer
from tests.distributed import jobs
from tests.distributed.matrix import Share
from tests.distributed.pool import Pool

CASES = ("cubic", "two_of_four", "rigl", "channels", "cluster", "dkm", "qat", "prune_and_cluster_and_qat", "distil")
PLACES = ("one", "ddp-2", "fsdp2-2", "fsdp2-4", "tp-2")
MOST_ZEROS_ELSEWHERE = 12  # of 384 weights, where a weight at a threshold is rounded to its other side
PRECISIONS = ("32", "bf16-mixed")
BUILT = ("__init__", "setup", "configure_model")
REFUSALS = ("does not support", "is not supported for sharded weights", "build the model in __init__")


def make(place: str, built: str) -> LightningModule:
    if built == "__init__":
        classes = {"tp": jobs.ParallelNet, "fsdp2": jobs.ShardedNet}
        return classes.get(place, Net)("adam", frozen_norms=True)
    return jobs.LateNet(built, kind=place, dtype=torch.float32)


def fit(name: str, place: str, built: str, precision: str) -> dict[str, Tensor] | str:
    """The state dict after the fit of a case; the message if it is refused."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model, callbacks = make(place, built), case("cubic" if name == "distil" else name).callbacks()
    if name == "distil":
        teacher = Net()
        for parameter in teacher.parameters():
            parameter.data.add_(0.1)
        model = lc.DistillationModule(model, teacher)
    options: dict[str, Any] = jobs.placed(place)
    try:
        trainer(callbacks, precision=precision, **options).fit(model, Loader() if place == "tp" else Share())
    except ValueError as error:
        if any(words in str(error) for words in REFUSALS):
            return f"refused: {error}"
        raise
    return {name.removeprefix("student."): tensor.clone() for name, tensor in jobs.whole(model.state_dict()).items()}


@cache
def pool_of(num_ranks: int) -> Pool:
    return Pool(num_ranks)


@cache
def reference(name: str, precision: str) -> dict[str, Tensor]:
    state = fit(name, "one", "__init__", precision)
    assert not isinstance(state, str)
    return state


def difference(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    """How far two state dicts are apart."""
    if ours.keys() != theirs.keys():
        return "DIFFERS: other keys"
    largest = max(float((ours[key].double() - theirs[key].double()).abs().max()) for key in theirs)
    masks = sum(int(((ours[key] == 0) != (theirs[key] == 0)).sum()) for key in theirs if theirs[key].ndim > 1)
    if masks > MOST_ZEROS_ELSEWHERE:
        return f"DIFFERS: {masks} zeros elsewhere"
    bound = "equal" if largest == 0 else f"<= 1e{math.ceil(math.log10(largest))}"
    return f"{bound}, {masks} zeros elsewhere" if masks else bound


def cell(name: str, precision: str, place: str, built: str) -> str:
    """The text of a cell."""
    kind, _, num_ranks = place.partition("-")
    try:
        if kind == "one":
            results = [fit(name, kind, built, precision)]
        else:
            results = pool_of(int(num_ranks))(fit, name, kind, built, precision)
        if isinstance(results[0], str):
            return "refused"
        if any(difference(result, results[0]) != "equal" for result in results):
            return "DIFFERS: between ranks"
        return difference(results[0], reference(name, precision))
    except Exception as error:
        return f"no: {str(error).strip().splitlines()[-1][:100]}"


def main() -> None:
    """Print the tables; exit with 1 if ranks differ or a run fails."""
    parser = argparse.ArgumentParser(prog="python -m tests.distributed.placements", description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", default=CASES, choices=CASES)
    parser.add_argument("--precisions", nargs="+", default=PRECISIONS, choices=PRECISIONS)
    parser.add_argument("--places", nargs="+", default=PLACES, choices=PLACES)
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    try:
        for precision in options.precisions:
            columns = [(place, built) for place in options.places for built in BUILT]
            print("|".join([f"\n| {precision} ", *(f" {place}, {built} " for place, built in columns), ""]))
            print("|".join(["", *["---"] * (1 + len(columns)), ""]), flush=True)
            for name in options.cases:
                cells = [cell(name, precision, place, built) for place, built in columns]
                failed = failed or any(text.startswith(("no", "DIFFERS")) for text in cells)
                print("|".join([f"| {name} ", *(f" {text} " for text in cells), ""]), flush=True)
    finally:
        for num_ranks in (2, 4):
            pool_of(num_ranks).close()
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
