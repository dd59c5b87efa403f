"""Dispatch of ``lightning-compress COMMAND ...``, one function per command."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from lightning_compress.cli.errors import did_you_mean, fail


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command.

    Args:
        argv: Name of the command and its arguments; ``sys.argv[1:]`` by default.

    Raises:
        SystemExit: With code 2 for wrong usage or an invalid configuration, after a one-line message.
    """
    command, *arguments = [*(sys.argv[1:] if argv is None else argv)] or ["--help"]
    # Recipes may refer to classes in modules of the working directory.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if command in ("-h", "--help", "help"):
        _print_help()
    elif command in COMMANDS:
        COMMANDS[command][1](arguments)
    else:
        fail(f"Unknown command {command!r}{did_you_mean(command, COMMANDS)}: choose one of {', '.join(COMMANDS)}.")


def _print_help() -> None:
    width = max(map(len, COMMANDS))
    print("usage: lightning-compress COMMAND ...\n")
    for name, (summary, _) in COMMANDS.items():
        print(f"  {name:<{width}}  {summary}")
    print("\n'lightning-compress COMMAND --help' lists the options of a command.")


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
    "sensitivity": ("--config=FILE [--mean_bits=4]: measure the quantization sensitivity of every layer", _sensitivity),
    "backbones": ("[GLOB] [--max-macs=300M]: list compact timm networks with their size and cost", _backbones),
    "recipes": ("list the recipes, or copy NAME [DEST]", _recipes),
}
