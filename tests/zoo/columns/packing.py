"""Column of packed files: bytes of the FP32 weights, divided by those of the file, which must load bit for bit."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path

import torch

import lightning_compress as lc
from tests.zoo.cells import Column
from tests.zoo.subject import Subject
from tests.zoo.task import fitted


def packed(subject: Subject) -> float:
    """Bytes of all parameters and buffers, divided by those of the file after pruning and clustering."""
    network = fitted(subject, lc.Pruning(0.8), lc.WeightClustering(16)).network
    state = network.state_dict()
    fresh = copy.deepcopy(subject.network)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.packed"
        lc.save_packed(network, path)
        size = path.stat().st_size
        fresh.load_state_dict(lc.load_packed(path))
    wrong = [name for name, tensor in fresh.state_dict().items() if not torch.equal(tensor, state[name])]
    assert not wrong, f"{wrong[0]} is another tensor"
    # Without tensors that occur twice, which every format can leave out.
    tensors = {tensor.data_ptr(): tensor for tensor in (*network.parameters(), *network.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / size


COLUMNS = (Column("packed, times smaller", packed, least=4.0),)
