"""Argument parsing of the commands that take no recipe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from lightning_compress.cli.errors import did_you_mean, fail


class CommandParser(argparse.ArgumentParser):
    """Parser that fails in one line, and takes neither abbreviations nor an option twice.

    Args:
        command: Name of the command.
        description: Its summary.
    """

    def __init__(self, command: str, description: str) -> None:
        super().__init__(
            prog=f"lightning-compress {command}", description=description, allow_abbrev=False, exit_on_error=False
        )
        self.command = command

    def error(self, message: str) -> NoReturn:
        """Fail with a message of argparse."""
        fail(f"{message}: see 'lightning-compress {self.command} --help'.")

    def parse(self, arguments: Sequence[str]) -> argparse.Namespace:
        """Parse the arguments of the command.

        Args:
            arguments: Arguments after the name of the command.

        Raises:
            SystemExit: With code 2 for wrong usage.
        """
        check_options_once(arguments)
        try:
            given, unknown = self.parse_known_args([*arguments])
        except argparse.ArgumentError as error:
            # The name of an option is all its spellings.
            self.error(f"{(error.argument_name or '').partition('/')[0]}: {error.message}")
        if unknown:
            options = [option for action in self._actions for option in action.option_strings]
            name = unknown[0].partition("=")[0]
            if not name.startswith("-"):
                fail(f"Unexpected argument {name!r}: see 'lightning-compress {self.command} --help'.")
            fail(
                f"Unknown option {name}{did_you_mean(name, options)}: 'lightning-compress {self.command} --help' lists "
                "all options."
            )
        return given


def check_options_once(arguments: Sequence[str]) -> None:
    """Fail if an option is given twice, of which parsers keep the last one without a word.

    Configuration files are merged, hence ``--config`` may be repeated, and ``--key+=value`` appends.

    Args:
        arguments: Arguments of a command.
    """
    names = [argument.partition("=")[0] for argument in arguments if argument.startswith("--")]
    twice = [n for n in dict.fromkeys(names) if names.count(n) > 1 and n not in ("--", "--config") and n[-1] != "+"]
    if twice:
        fail(f"{twice[0]} is given {names.count(twice[0])} times: remove all but one.")
