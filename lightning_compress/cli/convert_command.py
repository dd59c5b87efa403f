"""The command ``convert``: a SparseML recipe as a configuration of this package."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from lightning_compress.cli.errors import fail
from lightning_compress.cli.options import CommandParser
from lightning_compress.cli.sparseml.conversion import convert_recipe


def convert(arguments: Sequence[str]) -> None:
    """Convert a recipe, print the parts without a counterpart, and write or print the configuration.

    Args:
        arguments: Recipe, optionally the file to write, and options.

    Raises:
        SystemExit: With code 2 if the recipe cannot be read, or nothing of it has a counterpart.
    """
    parser = CommandParser("convert", "Convert a SparseML recipe to a configuration of this package.")
    parser.add_argument("recipe", metavar="RECIPE", help="SparseML recipe, YAML or Markdown")
    parser.add_argument("destination", metavar="DEST", nargs="?", help="file to write; by default it is printed")
    parser.add_argument("--module", default="model", help="submodule of the LightningModule that is the network")
    given = parser.parse(arguments)
    try:
        conversion = convert_recipe(Path(given.recipe).read_text(), module=given.module)
    except UnicodeDecodeError:
        fail(f"{given.recipe} is not a text file: give a SparseML recipe, YAML or Markdown.")
    except OSError as error:
        fail(f"{given.recipe} cannot be read: {error.strerror}.")
    except ValueError as error:
        fail(f"{given.recipe} cannot be converted: {error}.")
    for remark in conversion.remarks:
        print(remark, file=sys.stderr)
    if not conversion.config:
        fail(f"{given.recipe} cannot be converted: none of its modifiers has a counterpart.")
    _write(conversion.to_yaml(given.recipe), given.destination)


def _write(text: str, destination: str | None) -> None:
    if destination is None:
        print(text, end="")
        return
    try:
        with Path(destination).open("x") as file:
            file.write(text)
    except FileExistsError:
        fail(f"{destination} already exists and was not overwritten: give another DEST.")
    except OSError as error:
        fail(f"{destination} cannot be written: {error.strerror}.")
    print(f"{destination}: add it to a recipe with 'lightning-compress run RECIPE --config={destination}'.")
