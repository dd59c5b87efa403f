"""The exception of a constructor that jsonargparse has called, instead of the message that it makes of several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from jsonargparse import add_instantiator

_Instance = TypeVar("_Instance")

_failures: ContextVar[list[Exception] | None] = ContextVar("failures", default=None)


@contextmanager
def unwrapped_constructor_errors() -> Iterator[None]:
    """Raise the exception of a constructor as it is.

    For a key of several types jsonargparse tries one after the other, and raises an exception of its own with all
    messages and the first cause, which need not be the constructor's.
    """
    failures: list[Exception] = []
    token = _failures.set(failures)
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None and _is_foreign(cause):
            cause = cause.__cause__
        cause = cause or (failures[-1] if failures else error)
        if cause is error:
            raise
        raise cause from None
    finally:
        _failures.reset(token)


def _construct(class_type: type[_Instance], *args: Any, **kwargs: Any) -> _Instance:
    """Call a constructor, and keep its exception."""
    try:
        return class_type(*args, **kwargs)
    except Exception as error:
        failures = _failures.get()
        if failures is not None and not _is_foreign(error):
            failures.append(error)
        raise


def _is_foreign(error: BaseException) -> bool:
    """Return True for an exception of jsonargparse, or of a call with arguments of another class of a union."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    module = traceback.tb_frame.f_globals.get("__name__", "") if traceback is not None else ""
    return module == __name__ or module.partition(".")[0] == "jsonargparse"


add_instantiator(_construct, object)
