"""Assignment of weights to clusters, of full tensors or of the shards of one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
import torch.distributed as dist
from torch import Tensor


class Assignment:
    """Assignment of the weights of one tensor to clusters.

    Args:
        index: Cluster of each weight, int32 ``(num_weights,)``.
        num_clusters: Number of clusters, empty ones included.
        pins_zero: Keep the centroid of the first cluster at zero.
        free: Mask of the weights that are not assigned yet, bool ``(num_weights,)``; ``None`` if all are assigned.
        group: Process group over which the tensor is sharded: ``index`` and ``free`` are then of this rank's shard,
            clusters are of the full tensor, and ranks hold shards in their order.
    """

    def __init__(
        self,
        index: Tensor,
        num_clusters: int,
        *,
        pins_zero: bool = False,
        free: Tensor | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self.index = index
        self.num_clusters = num_clusters
        self.pins_zero = pins_zero
        self.free = free
        self.group = group

    @classmethod
    def join(cls, parts: Sequence[Assignment]) -> Assignment:
        """Return one assignment of the weights of several tensors, each to clusters of its own.

        >>> parts = [Assignment(torch.tensor([0, 1]), 2), Assignment(torch.tensor([1, 0]), 2)]
        >>> Assignment.join(parts).index.tolist()
        [0, 1, 3, 2]
        """
        if len(parts) == 1:
            return parts[0]
        sizes = [part.index.numel() for part in parts]
        device = parts[0].index.device
        ends = torch.tensor([part.num_clusters for part in parts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        offsets = starts.repeat_interleave(torch.tensor(sizes)).to(device)
        free = None
        if any(part.free is not None for part in parts):
            masks = (torch.zeros_like(p.index, dtype=torch.bool) if p.free is None else p.free for p in parts)
            free = torch.cat(list(masks))
        index = torch.cat([part.index for part in parts]) + offsets
        joint = cls(index, int(ends[-1]), free=free, group=parts[0].group)
        joint._pinned = starts[torch.tensor([part.pins_zero for part in parts])].long().to(device)
        return joint

    # Only what is asked for is computed: of many small tensors, only the joint assignment is asked.

    @cached_property
    def counts(self) -> Tensor:
        """Number of weights in each cluster, ``(num_clusters,)``; a collective when it is first read if sharded."""
        return add_over_ranks([self._num_each[:-1].clone()], self.group)[0]

    @cached_property
    def _owned(self) -> Tensor:
        """Clusters whose first member is on this rank; a collective when it is first read."""
        assert self.group is not None
        rank, num_ranks = dist.get_rank(self.group), dist.get_world_size(self.group)
        first_rank = torch.where(self._num_each[:-1] > 0, rank, num_ranks)
        dist.all_reduce(first_rank, dist.ReduceOp.MIN, group=self.group)
        return first_rank == rank

    @cached_property
    def _pinned(self) -> Tensor:
        """Clusters with a centroid of zero."""
        return torch.zeros(int(self.pins_zero), dtype=torch.long, device=self.index.device)

    @cached_property
    def _member_of(self) -> Tensor:
        # Free weights are counted in an extra cluster after the others, which every result drops.
        return self.index if self.free is None else self.index.masked_fill(self.free, self.num_clusters)

    @cached_property
    def _num_each(self) -> Tensor:
        return torch.bincount(self._member_of, minlength=self.num_clusters + 1)

    @cached_property
    def _first(self) -> Tensor:
        position = torch.arange(len(self.index), device=self.index.device)
        last = torch.full_like(self._num_each, len(self.index) - 1)
        return last.scatter_reduce_(0, self._member_of.long(), position, "amin")[:-1]

    @cached_property
    def _order(self) -> Tensor | None:
        # Atomic additions on a GPU depend on the order of threads; sums over a sorted copy are deterministic.
        return self._member_of.argsort(stable=True) if self.index.is_cuda else None

    def values(self, weight: Tensor) -> Tensor:
        """Return the first member of each cluster ``(num_clusters,)``; repeated averages of equal values drift."""
        return self.values_of(add_over_ranks([self.first_members(weight)], self.group)[0])

    def means(self, tensor: Tensor) -> Tensor:
        """Return the mean of each cluster, float64 ``(num_clusters,)``."""
        return self.means_of(add_over_ranks([self.sums(tensor)], self.group)[0])

    def first_members(self, weight: Tensor) -> Tensor:
        """Return this rank's summand of the first members: 0 for clusters that begin on another rank."""
        if self.group is None:
            return weight.flatten()[self._first]
        if not weight.numel():
            return weight.new_zeros(self.num_clusters)
        # Not a product, as a weight elsewhere may be infinite.
        return torch.where(self._owned, weight.flatten()[self._first], weight.new_zeros(()))

    def values_of(self, first_members: Tensor) -> Tensor:
        """Return :meth:`values` from the first members of all ranks."""
        return first_members.index_fill_(0, self._pinned, 0.0)

    def sums(self, tensor: Tensor) -> Tensor:
        """Return this rank's summand of the sum of each cluster, float64 ``(num_clusters,)``."""
        flat = tensor.flatten()
        if self._order is None:
            return torch.bincount(self._member_of, flat.double(), self.num_clusters + 1)[:-1]
        return torch.segment_reduce(flat.double()[self._order], "sum", lengths=self._num_each, unsafe=True)[:-1]

    def means_of(self, sums: Tensor) -> Tensor:
        """Return :meth:`means` from the sums of all ranks."""
        return (sums / self.counts.clamp(min=1)).index_fill_(0, self._pinned, 0.0)

    def write_(self, tensor: Tensor, values: Tensor) -> None:
        """Write each cluster's value into its members, in place."""
        tensor.copy_(self.written(tensor, values))

    def written(self, tensor: Tensor, values: Tensor) -> Tensor:
        """Return the tensor with each cluster's value in its members."""
        written = values.to(tensor.dtype).index_select(0, self.index)
        if self.free is not None:
            written = torch.where(self.free, tensor.flatten(), written)
        return written.view(tensor.shape)


def add_over_ranks(tensors: Sequence[Tensor], group: dist.ProcessGroup | None) -> Sequence[Tensor]:
    """Return the sums over ranks of tensors of one dimension, by one collective; without a group the tensors."""
    if group is None or not tensors:
        return tensors
    flat = torch.cat(list(tensors))
    dist.all_reduce(flat, group=group)
    return flat.split([tensor.numel() for tensor in tensors])
