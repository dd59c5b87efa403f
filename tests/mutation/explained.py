"""Mutants that no test can or has to notice, and why."""

from __future__ import annotations

ALIKE = "all tensors of a batch are alike"
AUTOCAST = "autocast computes these operations in float32 on every device"
AVERAGES = "seen by tests of averages, which take longer and are left out"
BETWEEN = "nothing is due before a step that was not due after the last one"
CHOICE = "only the choice between encodings of about the same size, or an unused entry"
CHECK = "only a check of the arguments"
COPIES = "seen by tests of copies, which take longer and are left out"
EQUAL = "the same at this value"
ESTIMATE = "an estimate of a size, which is exact to within a few bytes"
FIRST = "nothing is equal to it at first"
LIMIT = "a limit of memory or time, which results do not depend on"
RANKS = "seen by tests in processes of their own"
REST = "NumPy takes any negative size for the rest"
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
    "trainer/constraint_callback.py: self.steps, self._tick = (state.get('steps', 0), state.get('tick', -2))":
        "any negative number: no update has been made",
    "trainer/constraint_callback.py: if self._starting or self._tick < 0:": BETWEEN,
    "trainer/constraint_callback.py: if self._starting and self._tick <= 0:": BETWEEN,
    "trainer/constraint_callback.py: if group_of(self.constraint.layers) is not None:": RANKS,
    "trainer/constraint_callback.py: without check_ranks_agree(trainer, self.constraint.digest(), "
    "f'{type(self).__name__}: {self.noun}')": RANKS,
    "trainer/compression_callback.py: return False": RANKS,
    "trainer/compression_callback.py: without reshard(pl_module)": RANKS,
    "trainer/compression_callback.py: state = {name: value for name, value in vars(self).items() "
    "if name in ('log', 'log_dict')}": COPIES,
    "trainer/compression_callback.py: fit_state = FitState(self.state_dict() and None)": COPIES,
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
    # packing
    "packing/bit_patterns.py: return "
    "torch.from_numpy(patterns.reshape(-2).view(np.uint8)).view(dtype).reshape(shape)": REST,
    "packing/byte_planes.py: return 2 + sum(sizes) + 4": ESTIMATE,
    "packing/codebooks.py: if len(stream.data) + 2 * (len(table) - len(entries)) <= len(shortest.data):": CHOICE,
    "packing/codebooks.py: if len(stream.data) + 3 * (len(table) - len(entries)) < len(shortest.data):": CHOICE,
    "packing/column_masks.py: return nonzero.reshape(-2)": REST,
    "packing/context_coding.py: ordered, slices, bits = (grid.from_flat(symbols), [], 1.0)": ESTIMATE,
    "packing/context_coding.py: counts = symbol_counts(found, chosen.reshape(-2), tables.shape)": REST,
    "packing/exponents.py: return EncodingPlan(_HEADER_BYTES + 2 + len(entries) + ANS.num_bytes(counts) + "
    "lower.size, make)": ESTIMATE,
    "packing/gaps.py: limit = min(_MAX_LIMIT, int(gaps.max(initial=1)) + 1)": CHOICE,
    "packing/gaps.py: positions = np.flatnonzero(nonzero).astype(np.int32 if len(nonzero) < 2 ** 32 else np.int64)":
        "only tensors of two billion elements and more, for which tests have no memory",
    "packing/group_codebooks.py: if elements.itemsize not in (2, 4) or num_elements <= _MIN_ELEMENTS:": CHOICE,
    "packing/indexed_values.py: if len(sorted_unique(strided_sample(self.values))) >= _MAX_INTEGERS:": CHOICE,
    "packing/indexed_values.py: if self.entries.ndim > 1 or len(nonzero) <= _MIN_PREDICTED or len(self.entries) >= "
    "MAX_SYMBOLS:": CHOICE,
    "packing/integer_ranges.py: smallest, largest = (int(integers.min(initial=1)), int(integers.max(initial=0)))":
        CHOICE,
    "packing/integer_ranges.py: smallest, largest = (int(integers.min(initial=0)), int(integers.max(initial=1)))":
        CHOICE,
    "packing/length_lists.py: head = next(rest, _MAX_WIDTH + 2)": EQUAL,
    "packing/name_lists.py: if stop - start >= _MIN_RUN and increment >= 0:":
        "only digits with zeros before them differ by nothing, and numbers that are increased have none",
    "packing/name_lists.py: num_characters += len(name) + 2": LIMIT,
    "packing/neighbor_contexts.py: sizes = np.minimum(self._kernel_sizes[part.rows, part.channels], 2 ** 21 // "
    "(per_size + 1) + 1)": "beyond the last level, too",
    "packing/neighbor_contexts.py: sizes = np.minimum(self._kernel_sizes[part.rows, part.channels], 2 ** 20 // "
    "(per_size + 2) + 1)": "beyond the last level, too",
    "packing/neighbor_masks.py: if len(nonzero) <= _MIN_ELEMENTS:": CHOICE,
    "packing/packed_file.py: console = Console(width=101, color_system=None)": "the width of the printed tables",
    "packing/split_values.py: value_bytes[:, :-1] = np.frombuffer(lower, np.uint8).reshape(count, -2)": REST,
    "packing/split_values.py: return value_bytes.reshape(-2).view(like.dtype)": REST,
    "packing/unique.py: present = np.zeros(2 ** (9 * keys.itemsize), np.bool_)": LIMIT,
    "packing/unique.py: for spare_bits in (4, 7, 8):": LIMIT,
    "packing/unique.py: for spare_bits in (4, 6, 9):": LIMIT,
    "packing/unique.py: bits = min(max(len(values), 2).bit_length() + spare_bits, 21)": LIMIT,
    "packing/uniform_codebooks.py: indices = found - found.min() - ((found >= 0) & (found.min() < 0))":
        "no entry is zero, and with -0.0 there is no step either way",
    "packing/raw_values.py: return np.frombuffer(stream.data, like.dtype).reshape(-2, *like.shape[1:])": REST,
    "packing/packed_file.py: if not TYPE_CHECKING:": RANKS,
    "packing/vector_widths.py: if len(values) * _MIN_OCCURRENCES >= np.count_nonzero(sample) + _MIN_OCCURRENCES:":
        CHOICE,
}  # fmt: skip
