"""The command ``recipes``: find, list and copy recipes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning_compress
from lightning_compress.cli.errors import did_you_mean, fail

SWEEPS = "sweeps"
"""Directory below the recipes with configurations of W&B sweeps, which are not recipes."""


def recipes(arguments: Sequence[str]) -> None:
    """List all recipes, show or copy one: ``recipes [list | show NAME | copy NAME [DEST]]``."""
    if not arguments or [*arguments] == ["list"]:
        for name, path in available().items():
            print(f"{name:<24}{first_line(path)}")
    elif arguments[0] == "copy" and len(arguments) in (2, 3):
        copy(*arguments[1:])
    elif arguments[0] == "show" and len(arguments) == 2:
        print(find(arguments[1]).read_text(), end="")
    elif arguments[0] in ("-h", "--help"):
        print(
            "usage: lightning-compress recipes [list | show NAME | copy NAME [DEST]]\n\nList all recipes, show one, or "
            "copy one to edit it."
        )
    else:
        fail(
            f"Unknown usage 'recipes {' '.join(arguments)}': write 'recipes list', 'recipes show NAME' or "
            "'recipes copy NAME [DEST]'."
        )


def copy(name: str, destination: str = ".") -> None:
    """Copy a recipe to a file or directory without overwriting.

    Args:
        name: Path or name of the recipe.
        destination: File to write, or existing directory.
    """
    source = find(name)
    target = Path(destination)
    if target.is_dir() or destination.endswith(os.sep):
        target = target / source.name
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("x") as file:
            file.write(source.read_text())
    except FileExistsError:
        fail(
            f"{target} already exists and was not overwritten: give another DEST, as in 'recipes copy {name} my.yaml'."
        )
    except OSError as error:
        fail(f"{target} cannot be written: {error.strerror}.")
    print(f"{target}: run it with 'lightning-compress run {target}'.")


def find(name: str, *, near: Sequence[Path] = ()) -> Path:
    """Find the file of a recipe in the working directory, its repository or the installed package, in this order.

    Args:
        name: Path, or name such as ``recipes/digits/prune.yaml``, ``digits/prune.yaml`` or ``digits/prune``.
        near: Directories of the recipes that name it, which are searched after the working directory.

    Raises:
        SystemExit: With code 2 if there is no such recipe.
    """
    short = name.removeprefix("recipes/")
    spellings = (name, f"{name}.yaml", short, f"{short}.yaml")
    candidates = (directory / spelling for directory in [Path(), *near, *_directories()] for spelling in spellings)
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        names = available()
        suggestion = did_you_mean(short.removesuffix(".yaml"), names)
        choice = f", or one of {', '.join(names)}" if names else ""
        fail(f"Unknown recipe {name!r}{suggestion}: give the path of a file{choice}.")
    return found


def run_name_of(path: Path) -> str:
    """Return the name for runs of a recipe, such as ``digits-prune`` for ``recipes/digits/prune.yaml``."""
    path = path.resolve()
    return f"{path.parent.name}-{path.stem}" if path.parent.parent.name == "recipes" else path.stem


def available() -> dict[str, Path]:
    """Return the recipes that can be given by name, as name to path."""
    found: dict[str, Path] = {}
    for directory in _directories():
        for path in sorted(path for path in directory.glob("**/*.yaml") if path.parent.name != SWEEPS):
            found.setdefault(path.relative_to(directory).with_suffix("").as_posix(), path)
    return found


def first_line(path: Path) -> str:
    """Return the first line of a recipe, a comment that summarizes it."""
    with path.open() as file:
        return file.readline().lstrip("# ").rstrip()


def _directories() -> Iterator[Path]:
    """Yield the directories that contain recipes, by descending precedence."""
    here = Path.cwd()
    package = Path(lightning_compress.__file__).parent
    repository = next((path for path in (here, *here.parents) if (path / ".git").exists()), here)
    # A checkout has the recipes beside the package, an installed package contains them.
    checkout = [package.parent] if (package.parent / "pyproject.toml").is_file() else []
    seen = set()
    for parent in (here, repository, *checkout, package):
        directory = (parent / "recipes").resolve()
        if directory.is_dir() and directory not in seen:
            seen.add(directory)
            yield directory
