"""Column of channels: MACs before and after the removal of masked channels, which must not change the output."""

from __future__ import annotations

import lightning_compress as lc
from lightning_compress.profiling import count_macs
from tests.zoo.cells import Column
from tests.zoo.subject import Subject, outputs_of, sqnr
from tests.zoo.task import fitted


def removed(subject: Subject) -> float:
    """MACs of the network divided by those that are left of it."""
    task = fitted(subject, lc.Pruning(0.5, pattern=lc.Channels()))
    masked = task.network.eval()
    small, _ = lc.shrink(masked, subject.inputs)
    same = sqnr(outputs_of(masked, subject.inputs), outputs_of(small, subject.inputs))
    assert same > 60, f"the output changes ({same:.1f} dB)"
    return count_macs(masked, subject.inputs).total / count_macs(small, subject.inputs).total


COLUMNS = (Column("half of the channels, times fewer MACs", removed, least=1.05),)
