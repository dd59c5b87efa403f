"""``lightning-compress COMMAND ...``: one function per command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from lightning_compress.cli.errors import fail, nearest


def main(argv: Sequence[str] | None = None) -> None:
    """Runs one command.

    Args:
        argv: Name of the command and its arguments; those of the process by default.

    Raises:
        SystemExit: With 2 for wrong usage or configuration, after one sentence that says what to do.
    """
    command, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    # Classes in files of the working directory can be named in recipes.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if command in ("-h", "--help", "help"):
        _print_help()
    elif command in COMMANDS:
        COMMANDS[command][1](arguments)
    else:
        fail(f"{command!r} is no command{nearest(command, COMMANDS)}; the commands are {', '.join(COMMANDS)}.")


def _print_help() -> None:
    width = max(map(len, COMMANDS))
    print("usage: lightning-compress COMMAND ...\n")
    for name, (purpose, _) in COMMANDS.items():
        print(f"  {name:<{width}}  {purpose}")
    print("\nlightning-compress COMMAND --help says more.")


def _run(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.run import run

    run(arguments)


def _lightning(subcommand: str) -> Callable[[Sequence[str]], None]:
    def command(arguments: Sequence[str]) -> None:
        from lightning_compress.cli.compression import CompressionCLI

        CompressionCLI(args=[subcommand, *arguments])

    return command


def _sensitivity(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.sensitivity_command import sensitivity

    sensitivity(arguments)


def _backbones(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.backbones import backbones

    backbones(arguments)


def _recipes(arguments: Sequence[str]) -> None:
    from lightning_compress.cli.recipes import recipes

    recipes(arguments)


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], None]]] = {
    "run": ("RECIPE [--key=value ...]: fit, test and report", _run),
    "fit": ("--config=FILE [--key=value ...]: train and validate", _lightning("fit")),
    "validate": ("--config=FILE --ckpt_path=FILE: evaluate on the validation data", _lightning("validate")),
    "test": ("--config=FILE --ckpt_path=FILE: evaluate on the test data", _lightning("test")),
    "predict": ("--config=FILE --ckpt_path=FILE: predict", _lightning("predict")),
    "sensitivity": ("--config=FILE [--mean_bits=4]: what fewer bits cost, layer by layer", _sensitivity),
    "backbones": ("[GLOB] [--max-macs=300M]: compact networks of timm and what they cost", _backbones),
    "recipes": ("list the recipes, or copy NAME [DEST]", _recipes),
}
