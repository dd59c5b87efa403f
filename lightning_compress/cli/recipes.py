"""Recipes: where they are found, what there is, and a copy to edit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning_compress
from lightning_compress.cli.errors import fail, nearest


def recipes(arguments: Sequence[str]) -> None:
    """Lists the recipes, or copies one: ``recipes copy NAME [DEST]``."""
    if not arguments:
        for name, path in available().items():
            print(f"{name:<24}{headline(path)}")
    elif arguments[0] == "copy" and len(arguments) in (2, 3):
        copy(*arguments[1:])
    elif arguments[0] in ("-h", "--help"):
        print("usage: lightning-compress recipes [copy NAME [DEST]]\n\nLists the recipes, or copies one to edit.")
    else:
        fail(f"'recipes {' '.join(arguments)}' is not understood: write 'recipes' or 'recipes copy NAME [DEST]'.")


def copy(name: str, destination: str = ".") -> None:
    """Copies a recipe to a file or into a directory, never over a file that is there.

    Args:
        name: Path or name of the recipe.
        destination: File to write, or directory to write it into.
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
        fail(f"{target} exists already and is left as it is: give another DEST, as in 'recipes copy {name} my.yaml'.")
    except OSError as error:
        fail(f"{target} cannot be written: {error.strerror}.")
    print(f"{target}: run it with 'lightning-compress run {target}'.")


def find(name: str) -> Path:
    """The file of a recipe, from the working directory, its repository, or the installed package, in that order.

    Args:
        name: A path, or a name such as ``recipes/digits/prune.yaml``, ``digits/prune.yaml`` or ``digits/prune``.
    """
    short = name.removeprefix("recipes/")
    places = [Path(), *_directories()]
    candidates = (place / spelled for place in places for spelled in (name, f"{name}.yaml", short, f"{short}.yaml"))
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        names = available()
        near = nearest(short.removesuffix(".yaml"), names)
        there = f"there are {', '.join(names)}" if names else "there are none"
        fail(f"There is no recipe {name!r}{near}; {there}, or give a file's path.")
    return found


def title(path: Path) -> str:
    """What runs of a recipe are called: its name, with its folder's where that is a folder of recipes."""
    path = path.resolve()
    return f"{path.parent.name}-{path.stem}" if path.parent.parent.name == "recipes" else path.stem


def available() -> dict[str, Path]:
    """The recipes that can be named, by name."""
    found: dict[str, Path] = {}
    for directory in _directories():
        for path in sorted(directory.glob("**/*.yaml")):
            found.setdefault(path.relative_to(directory).with_suffix("").as_posix(), path)
    return found


def headline(path: Path) -> str:
    """The first line of a recipe, which is a comment that says what it does."""
    with path.open() as file:
        return file.readline().lstrip("# ").rstrip()


def _directories() -> Iterator[Path]:
    """Directories of recipes, nearest first."""
    here = Path.cwd()
    package = Path(lightning_compress.__file__).parent
    repository = next((path for path in (here, *here.parents) if (path / ".git").exists()), here)
    # In a checkout the recipes lie beside the package; an installed package has them inside.
    checkout = [package.parent] if (package.parent / "pyproject.toml").is_file() else []
    seen = set()
    for parent in (here, repository, *checkout, package):
        directory = (parent / "recipes").resolve()
        if directory.is_dir() and directory not in seen:
            seen.add(directory)
            yield directory
