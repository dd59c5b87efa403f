"""Wrong configuration in one sentence."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn


def fail(sentence: str, code: int = 2) -> NoReturn:
    """Prints a sentence and exits, with 2 where nothing is said."""
    print(f"lightning-compress: {sentence}", file=sys.stderr)
    sys.exit(code)


def nearest(word: str, words: Iterable[str]) -> str:
    """The word that was probably meant, as the end of a clause; nothing if none is near."""
    near = difflib.get_close_matches(word, list(words), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


@contextmanager
def one_sentence(started: Callable[[], bool]) -> Iterator[None]:
    """Turns refusals into one sentence and exit code 2, as long as nothing has been run.

    Args:
        started: Whether training or evaluation has begun, from where on errors keep their traceback. A full disk is
            told in one sentence at any time, and exits with 1.
    """
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lightning_compress.cli.checkpoint_io import DiskFull

    try:
        yield
    except DiskFull as error:
        fail(str(error), code=1)
    except (ValueError, MisconfigurationException, FileNotFoundError, RuntimeError) as error:
        if started() or not (sentence := _refusal(error)):
            raise
        fail(sentence)


def _refusal(error: Exception) -> str:
    """What an error refuses; nothing for errors that are not about the configuration."""
    # jsonargparse wraps what a constructor raises, once for every key around it.
    while isinstance(error.__cause__, Exception) and str(error.__cause__) in str(error):
        error = error.__cause__
    # Where a key takes several types, it lists why each did not do; a constructor's reason is the one that tells.
    if found := re.search(r"^\s*- (?!Expected |Does not |Not a |Parser |Problem )(.+)$", str(error), re.MULTILINE):
        return found.group(1)
    text = " ".join(str(error).split())
    if not isinstance(error, RuntimeError):
        return text
    if "Error(s) in loading state_dict" in text:
        from lightning_compress.models.weights import mismatch

        return f"The checkpoint is of another model: {mismatch(error)}; give --ckpt_path of this configuration's model."
    return ""
