"""Counts the compact networks of the installed timm and writes what ``lightning_compress.backbones`` looks up.

    python tests/benchmarks/backbone_counts.py

Takes a few minutes. To be run again, and its result committed, when timm's version or the list of families changes;
tests/catalogue compares a sample of it with what is counted there and then.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from time import perf_counter

import timm

from lightning_compress.models.catalogue.counting import macs, on_meta, sizes
from lightning_compress.models.catalogue.listing import COUNTS, default_input_size, families_by_name

SMALL = 32  # pixels, as in CIFAR


def main() -> None:
    """Counts all networks."""
    start = perf_counter()
    networks = {name: counts(name) for name in sorted(families_by_name())}
    lines = ",\n".join(f'"{name}": {json.dumps(found)}' for name, found in networks.items())
    COUNTS.write_text(f'{{"timm": "{timm.__version__}", "networks": {{\n{lines}\n}}}}\n')
    print(f"{len(networks)} networks in {perf_counter() - start:.0f} s.")


def counts(name: str) -> dict[str, object]:
    """What is written for a network; ``null`` for images that it does not take."""
    model = on_meta(name)
    found: dict[str, int | None] = {str(default_input_size(name)): macs(model, (3, *2 * (default_input_size(name),)))}
    try:
        found[str(SMALL)] = macs(model, (3, SMALL, SMALL))
    except Exception as error:
        print(f"{name}: {error!r:.100}")
        found[str(SMALL)] = None
    return {"sizes": asdict(sizes(model)), "macs": found}


if __name__ == "__main__":
    main()
