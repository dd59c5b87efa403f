"""Column of clustering: the share of the weights that are in clusters."""

from __future__ import annotations

import lightning_compress as lc
from tests.zoo.cells import Column
from tests.zoo.subject import Subject
from tests.zoo.task import fitted

NUM_CLUSTERS = 16


def clustered(subject: Subject) -> float:
    """Share of the weights in percent that lie in tensors of at most 16 values."""
    clustering = lc.WeightClustering(NUM_CLUSTERS)
    task = fitted(subject, clustering)
    assert clustering.reached, "not all weights are clustered"
    parameters, counts = dict(task.named_parameters()), lc.report(task)
    inside = [c.num_weights for c in counts.layers if parameters[c.name].unique().numel() <= NUM_CLUSTERS]
    return 100 * sum(inside) / counts.weights.num_weights


COLUMNS = (Column("16 clusters, %", clustered, least=90.0),)
