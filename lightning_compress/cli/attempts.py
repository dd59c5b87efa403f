"""Steps after a training whose failure must not lose the results of the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_compress.arguments import reason

_Result = TypeVar("_Result")


class Attempts:
    """Runs steps and keeps the messages of those that fail.

    Attributes:
        failures: One sentence for each step that failed.

    >>> attempts = Attempts()
    >>> attempts.run("The packed file", lambda: 1 / 0, default=None)
    >>> attempts.failures
    ['The packed file failed: division by zero.']
    """

    def __init__(self) -> None:
        self.failures: list[str] = []

    def run(self, name: str, step: Callable[[], _Result], *, default: _Result) -> _Result:
        """Return the result of a step, or the default if it raises.

        Args:
            name: Name of the step, which begins its message.
            step: Function without arguments.
            default: Value for a step that fails.
        """
        try:
            return step()
        except (Exception, SystemExit) as error:
            # Another run that exits, such as a baseline, has printed its message.
            why = f"exit code {error.code}" if isinstance(error, SystemExit) else reason(error)
            self.failures.append(f"{name} failed: {why}.")
        return default
