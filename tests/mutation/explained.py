"""Mutants that no test can or has to notice, and why."""

from __future__ import annotations

ALIKE = "all tensors of a batch are alike"
CHECK = "only a check of the arguments"
# "file: broken line" -> why.
EXPLAINED: dict[str, str] = {
    "constraints/codebook.py: return torch.segment_reduce(flat.double()[self._order], 'sum', "
    "lengths=self._num_each, unsafe=False)[:-1]": CHECK,
    "constraints/codebook.py: device = parts[1].index.device": ALIKE,
    "constraints/layer_batches.py: like = tensors[1]": ALIKE,
}
