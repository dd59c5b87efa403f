"""Writing of packed files."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
from torch import Tensor, nn

from lightning_compress.atomic_files import atomic_write
from lightning_compress.masked_norms import check_no_masked_norms
from lightning_compress.packing.base_differences import UNCHANGED
from lightning_compress.packing.bit_patterns import bit_patterns_of, checksum, dtype_name
from lightning_compress.packing.container import header_of, write_container
from lightning_compress.packing.encodings import is_codebook
from lightning_compress.packing.entry import Entry, StreamEntry
from lightning_compress.packing.packed_file import Item, PackedFile, items_of, packed_tensor
from lightning_compress.packing.progress_bar import track
from lightning_compress.packing.quantized_tensors import scale_name
from lightning_compress.packing.reader import NO_BASE, read_base
from lightning_compress.packing.tensor_encoder import EncodedTensor, encode_tensor
from lightning_compress.packing.tensors import (
    checked_halves,
    is_bias,
    norm_tensor_names,
    shared_names,
    tensors_of,
    to_half,
)
from lightning_compress.packing.unique import zero_order_entropy


def save_packed(
    model: nn.Module | Mapping[str, Tensor],
    path: str | Path,
    *,
    base: str | Path | None = None,
    half: Sequence[str] = (),
    progress: bool = False,
) -> PackedFile:
    """Write the state dict of a model to a compressed file, without loss of any bit.

    Each tensor is stored with the encodings that take the fewest bytes: dense, or as positions of its nonzero elements
    and their values; values as they are, as indices into a codebook (per tensor, per channel, per group of weights, or
    of vectors of 2 or 4 elements), or as integers times the scale of a quantizer. Symbols are
    entropy-coded, each with the frequencies of its context: the magnitudes of its row, channel and kernel, and its
    neighbors in the kernel. This is Deep Compression (Han et al. 2016, arXiv:1510.00149) with asymmetric numeral
    systems (Duda 2009, arXiv:0902.0271) instead of Huffman codes. The file is a safetensors file; :func:`load_packed`
    reads it without Lightning.

    Args:
        model: Model or state dict; it is not modified. Use :func:`finalize` to remove the state of training first.
        path: Path of the file. An existing file is replaced when the new one is complete.
        base: Packed file of an earlier state of the model, for example before fine-tuning. Only the differences to its
            tensors are written, and :func:`load_packed` needs it again.
        half: Groups of tensors to round to float16, which is not lossless: ``"codebooks"`` (tensors with a codebook),
            ``"norms"`` (all tensors of normalization layers), ``"biases"``. Tensors with values beyond the range of
            float16 are not rounded.
        progress: If True, show a progress bar.

    Returns:
        Report on the sizes of the file and of its tensors.

    Raises:
        ValueError: If ``half`` names an unknown group, or if the state dict holds objects other than dense tensors in
            memory; if norms of the model skip masked channels; or if ``base`` is not a packed file, holds differences
            itself, or is ``path``.

    Example:
        >>> import tempfile
        >>> from torch import nn
        >>> import lightning_compress as lc
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = lc.save_packed(nn.Linear(100, 10), f"{folder}/model.packed")
        ...     file.num_bytes == file.path.stat().st_size
        True
    """
    halves = checked_halves(half)
    if isinstance(model, nn.Module):
        check_no_masked_norms(model, "save_packed")
    tensors = tensors_of(model)
    if base is not None and Path(base).resolve() == Path(path).resolve():
        raise ValueError(f"save_packed: {path} would replace its own base, without which it cannot be read.")
    found = NO_BASE if base is None else read_base(base)
    norms, shared = norm_tensor_names(model, tensors), shared_names(tensors)
    biases = frozenset(name for name, tensor in tensors.items() if is_bias(name, tensor))
    rounded = (norms if "norms" in halves else frozenset()) | (biases if "biases" in halves else frozenset())
    # The header comes first in the file but is known last. A temporary file keeps the streams out of memory.
    with atomic_write(path) as partial, tempfile.TemporaryFile(dir=partial.parent) as payload:
        packed = []
        for name in track(tensors, "packing", shown=progress):
            if name in shared:
                packed.append(_PackedEntry(Entry(name, shared_with=shared[name])))
            else:
                packed.append(_pack(name, tensors, payload, halves, name in rounded, found.tensors.get(name)))
        header = header_of([p.entry for p in packed], payload.tell(), found.content)
        write_container(partial, header, payload)
    return _report(Path(path), packed, tensors, norms, len(header))


@dataclass(frozen=True)
class _PackedEntry:
    entry: Entry
    num_sparse_bytes: int = 0
    num_fixed_bytes: int = 0
    entropy: float | None = None


def _pack(
    name: str,
    tensors: Mapping[str, Tensor],
    payload: IO[bytes],
    halves: frozenset[str],
    is_rounded: bool,
    base: Tensor | None,
) -> _PackedEntry:
    """Encode one tensor and append its streams to the payload."""
    tensor = tensors[name]
    same = base is not None and (base.dtype, base.shape) == (tensor.dtype, tensor.shape)
    encoded = encode_tensor(tensor, tensors.get(scale_name(name)), base if same else None)
    rounded = to_half(tensor) if _is_rounded(encoded, halves, is_rounded) else None
    entry = Entry(name, dtype_name(tensor.dtype), tuple(tensor.shape))
    num_sparse_bytes = encoded.num_sparse_bytes
    if rounded is not None:
        # Rounded first and encoded again, since rounding can merge values; the checksum is that of the result.
        encoded, entry, tensor = encode_tensor(rounded), replace(entry, half=True), rounded.to(tensor.dtype)
    if encoded.integers is not None:
        integers = encoded.integers
        entry = replace(entry, scale=scale_name(name), axis=integers.axis, negative_zero=integers.negative_zero)
    streams = tuple(StreamEntry(s.kind, payload.write(s.data), s.parameters) for s in encoded.streams)
    entry = replace(entry, crc32=checksum(name, tensor), streams=streams, width=encoded.width)
    values = bit_patterns_of(tensor.cpu()) if encoded.integers is None else encoded.integers.values.view(np.uint16)
    num_fixed_bytes = min(encoded.num_fixed_bytes, num_sparse_bytes)
    return _PackedEntry(entry, num_sparse_bytes, num_fixed_bytes, zero_order_entropy(values))


def _is_rounded(encoded: EncodedTensor, halves: frozenset[str], is_rounded: bool) -> bool:
    # Integers times a rounded product would no longer be exact, and their scale is a tensor of its own.
    if encoded.integers is not None:
        return False
    kinds = [stream.kind for stream in encoded.streams]
    if kinds == [UNCHANGED.kind]:
        return False
    has_codebook = any(is_codebook(kind, kinds) for kind in kinds)
    return is_rounded or ("codebooks" in halves and has_codebook)


def _report(
    path: Path,
    packed: list[_PackedEntry],
    tensors: Mapping[str, Tensor],
    norms: frozenset[str],
    num_header_bytes: int,
) -> PackedFile:
    entries = tuple(p.entry for p in packed)
    num_bytes = num_header_bytes + sum(entry.num_bytes for entry in entries)
    stages = (
        Item("dense", sum(tensors[e.name].nbytes for e in entries if e.shared_with is None)),
        Item("+ prune", num_header_bytes + sum(p.num_sparse_bytes for p in packed)),
        Item("+ cluster", num_header_bytes + sum(p.num_fixed_bytes for p in packed)),
        Item("+ entropy coding", num_bytes),
    )
    table = tuple(packed_tensor(p.entry, tensors[p.entry.name].numel(), p.entropy) for p in packed)
    return PackedFile(path, num_bytes, items_of(entries, norms, num_header_bytes), stages, table)
