"""All that is measured on a GPU, in one command of at most 40 minutes on one H200, which continues where it stopped.

    python tests/benchmarks/gpu.py --out gpu.json [--data DATA --weights WEIGHTS] [--minutes 40] [--epochs 16]
        [--rounds 5] [--steps 10] [--only 'steps/*'] [--device gpu|cpu] [--tiny]

Steps of all techniques over the plain step, their memory and synchronizations, and graph breaks (``gpu_steps.py``);
latency of a 2:4 network (``gpu_sparse.py``); with --data and --weights accuracies on CIFAR-10 (``gpu_accuracy.py``).
Each result is written to --out at once, and what stands there is not measured again, except what failed. A measurement
that would end after --minutes, judged by the longest of its kind and network so far, is left for the next call. The
exit code is 1 if something failed, and 3 if something was left for the next call.

--tiny measures small networks and batches by the same code; on a CPU without memory, synchronizations and sparse
tensor cores, whose fields say so.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import timm
import torch
from gpu_sparse import latency
from gpu_steps import FULL, TINY, Steps

from lightning_compress.atomic_files import atomic_write

Measurements = Mapping[str, Callable[[], dict[str, Any]]]


def measurements(args: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """All of them by name, the shortest kinds first."""
    settings = TINY if args.tiny else FULL
    precision = "bf16-mixed"
    steps = [Steps(each, args.device, precision, args.rounds, args.steps) for each in settings]
    batches, repeats = ((1, 2), 3) if args.tiny else ((1, 64), 100)
    found: dict[str, Callable[[], dict[str, Any]]] = {}
    for each in steps:
        found |= each.measurements()
    for batch in batches:
        found[f"semi_structured/{settings[1].name}/batch_{batch}"] = partial(
            latency, settings[1], args.device, batch, repeats
        )
    if args.data and args.weights:
        import gpu_accuracy  # needs more packages than the rest

        budget = gpu_accuracy.Budget(args.data, args.weights, args.epochs, args.prune_rounds, args.workers)
        found |= gpu_accuracy.measurements(budget)
    return {name: measure for name, measure in found.items() if fnmatchcase(name, args.only)}


def environment(args: argparse.Namespace) -> dict[str, Any]:
    """What results depend on; a file holds those of one environment."""
    device = torch.cuda.get_device_name() if args.device == "gpu" else "cpu"
    versions = {"torch": torch.__version__, "lightning": lightning.__version__, "timm": timm.__version__}
    return {"device": device, "tiny": args.tiny, **versions}


def remaining(measurements: Measurements, results: Mapping[str, Any]) -> list[str]:
    """Names of the measurements without a result, or with one that failed."""
    return [name for name in measurements if "error" in results.get(name, {"error": ""})]


def expected_seconds(name: str, results: Mapping[str, Any]) -> float:
    """Seconds of the longest measurement of the same kind and network so far."""
    kind = name.rpartition("/")[0]
    return max((r["seconds"] for n, r in results.items() if n.startswith(f"{kind}/") and "seconds" in r), default=0.0)


def measure_all(measurements: Measurements, path: Path, environment: Mapping[str, Any], minutes: float) -> int:
    """Measure what has no result yet, write each result at once, and return the exit code."""
    begin, code = time.monotonic(), 0
    stored = json.loads(path.read_text()) if path.exists() else {"environment": dict(environment), "results": {}}
    if stored["environment"] != environment:
        print(f"{path} was written in another environment, {stored['environment']}: choose another --out.")
        return 1
    results = stored["results"]
    for name in remaining(measurements, results):
        if time.monotonic() - begin + expected_seconds(name, results) > 60 * minutes:
            print(f"{name}: left for the next call", flush=True)
            code = code or 3
            continue
        start = time.monotonic()
        try:
            result = measurements[name]()
        except Exception as error:  # out of memory, or an operator that is missing: the others are measured
            traceback.print_exc()
            result, code = {"error": f"{type(error).__name__}: {error}"}, 1
        results[name] = {**result, "seconds": time.monotonic() - start}
        with atomic_write(path) as partial_path:
            partial_path.write_text(json.dumps(stored, indent=1))
        print(f"{name}: {json.dumps(results[name])}", flush=True)
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="file of the results, which is continued")
    parser.add_argument("--data", help="folder of the CIFAR-10 images")
    parser.add_argument("--weights", help="folder of cifar10_resnet20.safetensors and cifar10_resnet56.safetensors")
    parser.add_argument("--minutes", type=float, default=40.0)
    parser.add_argument("--epochs", type=int, default=16, help="epochs of each run on CIFAR-10")
    parser.add_argument("--prune-rounds", type=int, default=4, help="rounds of pruning and rewinding")
    parser.add_argument("--workers", type=int, default=4, help="processes that load CIFAR-10")
    parser.add_argument("--rounds", type=int, help="fits of each arm (5, with --tiny 2)")
    parser.add_argument("--steps", type=int, help="timed steps of a fit (10, with --tiny 2)")
    parser.add_argument("--only", default="*", help="glob of the measurements to make")
    parser.add_argument("--device", choices=["gpu", "cpu"], default="gpu")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args()
    args.rounds, args.steps = (args.rounds or 2, args.steps or 2) if args.tiny else (args.rounds or 5, args.steps or 10)
    if args.device == "gpu" and not torch.cuda.is_available():
        parser.error("there is no CUDA device: run on one, or with --device cpu --tiny to try the code.")
    for logger in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    return measure_all(measurements(args), args.out, environment(args), args.minutes)


if __name__ == "__main__":
    sys.exit(main())
