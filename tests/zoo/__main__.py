"""Command that measures the networks of the zoo: ``python -m tests.zoo [--technique T] [NAME ...]``."""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor

from tests.zoo.networks import NETWORKS
from tests.zoo.runner import run
from tests.zoo.table import table, write
from tests.zoo.techniques import TECHNIQUES


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__.split(":")[0])
    parser.add_argument("networks", nargs="*", metavar="NAME", help="networks; all by default")
    parser.add_argument("--technique", choices=TECHNIQUES, nargs="+", default=[*TECHNIQUES])
    parser.add_argument("--processes", type=int, default=1, help="networks that are measured at the same time")
    args = parser.parse_args()
    if unknown := set(args.networks) - set(NETWORKS):
        parser.error(f"no network is called {', '.join(sorted(unknown))}")
    for technique in args.technique:
        names = args.networks or [*NETWORKS]
        with ThreadPoolExecutor(args.processes) as pool:
            rows = pool.map(run, [technique] * len(names), names)
            text = table(dict(zip(names, rows, strict=True)))
        print(text)
        if not args.networks:
            write(technique, text)


if __name__ == "__main__":
    main()
