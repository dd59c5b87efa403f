"""timm's compact networks as a table."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from operator import attrgetter
from typing import NoReturn

from rich.console import Console

from lightning_compress.cli.errors import fail, nearest
from lightning_compress.models.catalogue.listing import backbones as catalogue

_UNITS = {"k": 1e3, "m": 1e6, "g": 1e9}
_COLUMNS = ("params", "macs", "latency")


def backbones(arguments: Sequence[str]) -> None:
    """Prints the compact networks that a glob and limits leave: ``backbones [GLOB] [--max-params=3M ...]``."""
    given, strays = _parser().parse_known_args([*arguments])
    if strays:
        _refuse(strays[0])
    if given.sort == "latency" and not given.latency:
        fail("--sort=latency needs --latency, which measures it.")
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
        # An option is called by the first of its names.
        fail(re.sub(r"^argument ([^/:]+)[^:]*", r"\1", message) + ".")


def _parser() -> _Parser:
    parser = _Parser(
        prog="lightning-compress backbones",
        description="Lists timm's compact networks with parameters, multiply-accumulates and bytes.",
        allow_abbrev=False,
    )
    parser.add_argument("glob", metavar="GLOB", nargs="?", default="*", help="of names or families, in any case")
    for name, what in (("params", "parameters, such as 3M"), ("macs", "multiply-accumulates, such as 300M or 1.5G")):
        parser.add_argument(f"--max-{name}", f"--max_{name}", type=_number, metavar="N", help=f"most {what}")
    parser.add_argument("--input-size", "--input_size", type=int, metavar="N", help="height and width of the images")
    parser.add_argument("--num-classes", "--num_classes", type=int, metavar="N", help="by default ImageNet's 1000")
    parser.add_argument("--latency", action="store_true", help="measure milliseconds here, one thread, one image")
    parser.add_argument("--sort", choices=_COLUMNS, help="smallest first")
    return parser


def _number(text: str) -> float:
    """A number as people write it: ``300M`` is 300 million."""
    unit = _UNITS.get(text[-1:].lower(), 1.0)
    try:
        return float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} must be a number, such as 500k, 3M or 1.5G") from None


def _refuse(stray: str) -> NoReturn:
    if not stray.startswith("-"):
        fail(f"{stray!r} is not understood: backbones takes one GLOB; quote it if the shell expands it.")
    options = [option for action in _parser()._actions for option in action.option_strings]
    name = stray.partition("=")[0]
    fail(f"{name} is no option{nearest(name, options)}; 'lightning-compress backbones --help' lists them.")
