"""One-line error messages for invalid configurations."""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn
from urllib.error import URLError


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
    except Exception as error:
        # The input may be wrong at any time; anything else is an error of the configuration before the first batch.
        if message := input_message(error):
            fail(message)
        is_expected = isinstance(error, (ValueError, MisconfigurationException, OSError, RuntimeError, ImportError))
        if not is_expected or has_started() or not (message := _message(error)):
            raise
        fail(message)


def input_message(error: BaseException | None) -> str:
    """Return a sentence on input that cannot be used, from the objects of a chain of exceptions; or an empty string.

    Args:
        error: Exception of a library, which names neither the key nor the fix.
    """
    while error is not None:
        module, name = type(error).__module__.partition(".")[0], type(error).__name__
        if module == "wandb" and name in ("UsageError", "CommError", "AuthenticationError"):
            return (
                f"W&B: {_first_line(error)}: run 'wandb login', or log offline with WANDB_MODE=offline or "
                "--trainer.logger.offline=true."
            )
        if name == "UnidentifiedImageError":
            return f"An image of the dataset is corrupt: {_first_line(error)}: repair or remove the file."
        if isinstance(error, URLError):
            return (
                f"The download failed ({_first_line(error)}): connect to the network, or give the path of local files."
            )
        # PyTorch raises plain errors for labels and channels that do not fit: the numbers are in their text alone. If
        # that changes, errors keep their traceback, and the tests of bad input fail.
        if isinstance(error, IndexError) and (found := re.search(r"Target (-?\d+) is out of bounds", str(error))):
            return f"A label is {found[1]}, which the model has no class for: set num_classes, or correct the labels."
        if isinstance(error, OSError) and error.errno in _NOT_WRITABLE and error.filename is not None:
            return (
                f"{error.filename} cannot be written ({os.strerror(error.errno)}): choose another directory with "
                "--trainer.default_root_dir."
            )
        channels = re.search(r"expected input\[.*\] to have (\d+) channels, but got (\d+) channels", str(error))
        if isinstance(error, RuntimeError) and channels:
            return (
                f"The model has {channels[1]} input channels, the data has {channels[2]}: set "
                f"--model.model_kwargs.in_chans={channels[2]}, or convert the images."
            )
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return ""


_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(" .:") if str(error).strip() else type(error).__name__


def _message(error: Exception) -> str:
    """Return the message of a configuration error, or an empty string for any other error."""
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
