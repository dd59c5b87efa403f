"""One-line error messages for invalid configurations."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn


def fail(message: str, code: int = 2) -> NoReturn:
    """Print a message to stderr and exit; code 2 stands for wrong usage or configuration."""
    print(f"lightning-compress: {message}", file=sys.stderr)
    sys.exit(code)


def did_you_mean(word: str, candidates: Iterable[str]) -> str:
    """Return a suggestion to append to a message, or an empty string if no candidate is similar.

    >>> did_you_mean("sparsiti", ["pattern", "sparsity"])
    " (did you mean 'sparsity'?)"
    """
    matches = difflib.get_close_matches(word, list(candidates), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


@contextmanager
def exit_on_config_error(has_started: Callable[[], bool]) -> Iterator[None]:
    """Report configuration errors in one line and exit with code 2, unless a batch has been run.

    Args:
        has_started: Returns True once training or evaluation has begun; errors keep their traceback from then on. A
            full disk is reported in one line at any time, with exit code 1.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lightning_compress.cli.checkpoint_io import DiskFullError

    try:
        yield
    except DiskFullError as error:
        fail(str(error), code=1)
    except (ValueError, MisconfigurationException, FileNotFoundError, RuntimeError) as error:
        if has_started() or not (message := _message(error)):
            raise
        fail(message)


def _message(error: Exception) -> str:
    """Return the message of a configuration error, or an empty string for any other error."""
    # jsonargparse wraps the exception of a constructor once for every key around it.
    while isinstance(error.__cause__, Exception) and str(error.__cause__) in str(error):
        error = error.__cause__
    # For a key with several types it lists one reason per type; the one raised by a constructor is the relevant one.
    if found := re.search(r"^\s*- (?!Expected |Does not |Not a |Parser |Problem )(.+)$", str(error), re.MULTILINE):
        return found.group(1)
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError):
        return text
    if "Error(s) in loading state_dict" in text:
        from lightning_compress.models.weights import mismatch

        return (
            f"The checkpoint does not match the model: {mismatch(error)}; set --ckpt_path to a checkpoint of the "
            "configured model."
        )
    return ""
