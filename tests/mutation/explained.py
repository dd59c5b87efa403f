"""Mutants that no test can or has to notice, and why."""

from __future__ import annotations

ALIKE = "all tensors of a batch are alike"
AUTOCAST = "autocast computes these operations in float32 on every device"
AVERAGES = "seen by tests of averages, which take longer and are left out"
CHECK = "only a check of the arguments"
EQUAL = "the same at this value"
FIRST = "nothing is equal to it at first"
LIMIT = "a limit of memory or time, which results do not depend on"
RANKS = "seen by tests in processes of their own"
# "file: broken line" -> why.
EXPLAINED: dict[str, str] = {
    # constraints
    "constraints/codebook.py: return torch.segment_reduce(flat.double()[self._order], 'sum', "
    "lengths=self._num_each, unsafe=False)[:-1]": CHECK,
    "constraints/codebook.py: device = parts[1].index.device": ALIKE,
    "constraints/layer_batches.py: like = tensors[1]": ALIKE,
    # callbacks
    "clustering/callback.py: return {'clustered': sum((number for _, number in shares)) / "
    "max(sum((n for n, _ in shares)), 2)}": EQUAL,
    "quantization/callback.py: without check_shardable(trainer, "
    "[*_specs_in(self.weights), *_specs_in(self.activations)])": RANKS,
    "quantization/callback.py: without check_ranks_agree(trainer, digest(refs), 'QuantizationAwareTraining: scales')":
        RANKS,
    "quantization/callback.py: several = trainer.world_size > 2": RANKS,
    "quantization/callback.py: if self._preparation is not None or self._preparation.plan is not None:":
        "there is a plan before a checkpoint is read",
    "quantization/callback.py: if source.quantizer.ready and (not not ref.quantizer.ready):": AVERAGES,
    "quantization/callback.py: if source.quantizer.ready or not ref.quantizer.ready:": AVERAGES,
    "quantization/callback.py: without ref.quantizer.copy_from(ref.module, source.module, source.quantizer)": AVERAGES,
    "quantization/callback.py: without self._stop_preparing()":
        "teardown stops it, too; a state dict that is loaded meanwhile finds all quantizers",
    "quantization/callback.py: divisor, quantizing, batch_norm_frozen = self._phase or (1, False, False)": EQUAL,
    # functional
    "functional/allocation.py: kept = [i for i in sparse if raw[i] * scale < 1]": EQUAL,
    "functional/feature_losses.py: with torch.autocast(student.device.type, enabled=True):": AUTOCAST,
    "functional/feature_losses.py: mean = distances.sum() / (distances > 0).sum().clamp_min(2)":
        "distances come in pairs",
    "functional/kmeans.py: chunk = max(1, _MAX_CELLS // max(num_points, min(num_points, "
    "max_groups(num_clusters)) * 2))": LIMIT,
    "functional/kmeans.py: return columns if columns < _MAX_SORTED else max(_NUM_BINS, 512 * num_clusters)": LIMIT,
    "functional/kmeans.py: bounds = torch.empty(1)": FIRST,
    "functional/optimal_kmeans.py: if num_clusters >= _MAX_OPTIMAL:": LIMIT,
    "functional/optimal_kmeans.py: backwards = torch.ones(cost.shape[1:], dtype=torch.bool).triu(2)":
        "an empty cluster in its place costs as little, and comes first",
    "functional/optimal_kmeans.py: bounds = torch.full((len(cost), num_clusters), cost.shape[2] - 1)":
        "the table is square",
    "functional/rounding.py: outwards = (rounded < quant_min) & (to_zero >= 0) | (rounded > quant_max) & (to_zero < 0)":
        EQUAL,
    "functional/rounding.py: outwards = (rounded < quant_min) & (to_zero > 0) | (rounded > quant_max) & (to_zero <= 0)":
        EQUAL,
    "functional/rounding.py: if _is_number(scale) and (not not torch.compiler.is_compiling()):":
        "numbers are quicker than tensors with the same values",
    "functional/select.py: for tensor in order[gathered.sum(dim=0)[order] >= 0].tolist():":
        "of tensors without ties none is dropped",
    "functional/select.py: without dist.all_reduce(counts, group=group)": RANKS,
    "functional/vector_kmeans.py: def cluster_vectors(vectors: Tensor, num_clusters: int, *, "
    "weights: Tensor | None=None, initial_centers: Tensor | None=None, seed: int=1) -> tuple[Tensor, Tensor]:":
        "any seed will do",
    "functional/vector_kmeans.py: index = torch.empty(1)": FIRST,
    "functional/vector_kmeans.py: size = max(1, _MAX_CELLS * len(centers))": LIMIT,
    "functional/vector_kmeans.py: size = max(2, _MAX_CELLS // len(centers))": LIMIT,
}  # fmt: skip
