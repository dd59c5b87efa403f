"""The command ``backbones``: list compact timm networks."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from operator import attrgetter
from typing import NoReturn

from rich.console import Console

from lightning_compress.cli.errors import did_you_mean, fail
from lightning_compress.models.catalogue.listing import backbones as catalogue

_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
_COLUMNS = ("params", "macs", "latency")


def backbones(arguments: Sequence[str]) -> None:
    """Print the compact networks that match a glob and limits: ``backbones [GLOB] [--max-params=3M ...]``."""
    given, unknown = _parser().parse_known_args([*arguments])
    if unknown:
        _fail_on_unknown(unknown[0])
    if given.sort == "latency" and not given.latency:
        fail("--sort=latency requires --latency, which measures it.")
    console = Console()
    try:
        with console.status("Counting and measuring"):
            found = catalogue(
                given.glob,
                max_params=given.max_params,
                max_macs=given.max_macs,
                input_size=given.input_size,
                num_classes=given.num_classes,
                latency=given.latency,
            )
    except ValueError as error:
        fail(str(error))
    console.print(found.sort(attrgetter(given.sort)) if given.sort else found)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse lists all spellings of an option; the message names only the first.
        fail(re.sub(r"^argument ([^/:]+)[^:]*", r"\1", message) + ".")


def _parser() -> _Parser:
    parser = _Parser(
        prog="lightning-compress backbones",
        description="List compact timm networks with their parameters, multiply-accumulates and bytes.",
        allow_abbrev=False,
    )
    parser.add_argument("glob", metavar="GLOB", nargs="?", default="*", help="name or family, case-insensitive")
    for name, unit in (("params", "parameters, such as 3M"), ("macs", "multiply-accumulates, such as 300M or 1.5G")):
        parser.add_argument(f"--max-{name}", f"--max_{name}", type=_number, metavar="N", help=f"maximum {unit}")
    parser.add_argument("--input-size", "--input_size", type=int, metavar="N", help="height and width of the images")
    parser.add_argument(
        "--num-classes", "--num_classes", type=int, metavar="N", help="number of classes, 1000 by default"
    )
    parser.add_argument(
        "--latency", action="store_true", help="measure the latency on this CPU, one thread, batch size 1"
    )
    parser.add_argument("--sort", choices=_COLUMNS, help="sort by this column, in ascending order")
    return parser


def _number(text: str) -> float:
    """Parse a number with an optional unit k, M or G."""
    unit = _UNITS.get(text[-1:].lower(), 1.0)
    try:
        return float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} must be a number, such as 500k, 3M or 1.5G") from None


def _fail_on_unknown(argument: str) -> NoReturn:
    if not argument.startswith("-"):
        fail(f"Unexpected argument {argument!r}: backbones takes one GLOB; quote it if the shell expands it.")
    options = [option for action in _parser()._actions for option in action.option_strings]
    name = argument.partition("=")[0]
    fail(
        f"Unknown option {name}{did_you_mean(name, options)}: 'lightning-compress backbones --help' lists all options."
    )
