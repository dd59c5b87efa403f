"""Columns of pruning: the zeros among the weights that are asked for, of any pattern and in groups."""

from __future__ import annotations

import ast
import re

import lightning_compress as lc
from tests.zoo.cells import Column
from tests.zoo.subject import Subject
from tests.zoo.task import fitted


def unstructured(subject: Subject) -> float:
    """Zeros among all matrices and kernels in percent, after a fit that asks for 80."""
    return _zeros(subject, lc.Pruning(0.8))


def two_of_four(subject: Subject) -> float:
    """The same after a fit that asks for two zeros in four, without the layers that a refusal names."""
    pattern = lc.NM(2, 4)
    try:
        return _zeros(subject, lc.Pruning(0.5, pattern=pattern))
    except ValueError as error:
        # The sentence is to be followed as it stands.
        named = re.search(r"leave it out: Targets\(exclude=(\(.*\))\)", str(error))
        if named is None:
            raise
        targets = lc.Targets(exclude=ast.literal_eval(named[1]))
    return _zeros(subject, lc.Pruning(0.5, pattern=pattern, targets=targets))


def _zeros(subject: Subject, pruning: lc.Pruning) -> float:
    task = fitted(subject, pruning)
    assert pruning.reached, "the target was not reached"
    return 100 * lc.report(task).weights.sparsity


COLUMNS = (
    Column("80 % zeros, %", unstructured, least=78.0),
    Column("2:4, %", two_of_four, least=40.0),
)
