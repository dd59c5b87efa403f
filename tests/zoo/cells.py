"""Cells and columns of the tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.zoo.subject import Subject


@dataclass(frozen=True)
class Column:
    """Column of a table.

    Attributes:
        title: Head of the column, with the unit.
        measure: Returns the number of a network, or raises.
        least: Number below which a cell needs an explanation.
    """

    title: str
    measure: Callable[[Subject], float]
    least: float


@dataclass(frozen=True)
class Cell:
    """Result of one column for one network: a number, a sentence, or a failure.

    Attributes:
        title: Head of the column.
        number: The number, if there is one.
        refusal: Message of a ``ValueError`` that is one sentence of ours.
        failure: Foreign exception, or ``"HANG"``.
        is_low: True for a number that needs an explanation.
    """

    title: str
    number: float | None = None
    is_low: bool = False
    refusal: str = ""
    failure: str = ""


def measure(column: Column, subject: Subject) -> Cell:
    """Compute a cell; exceptions become its content."""
    try:
        number = column.measure(subject)
        return Cell(column.title, number=number, is_low=not number >= column.least)  # NaN too
    except ValueError as error:
        if is_sentence_of_ours(error):
            return Cell(column.title, refusal=str(error))
        return Cell(column.title, failure=describe(error))
    except Exception as error:  # the exceptions are what the table is about
        return Cell(column.title, failure=describe(error))


def is_sentence_of_ours(error: ValueError) -> bool:
    """Return True for an error that was raised in the package, with a message in one line."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    raised_in = frame.tb_frame.f_globals.get("__name__", "") if frame is not None else ""
    return raised_in.startswith("lightning_compress.") and "\n" not in str(error).strip()


def describe(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"EXCEPTION {type(error).__name__}: {lines[0][:200]}"
