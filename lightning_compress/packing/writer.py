"""Writing a packed file."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from torch import Tensor, nn

from lightning_compress.atomic_files import written
from lightning_compress.packing.bit_patterns import checksum, dtype_name
from lightning_compress.packing.container import header_of, write_container
from lightning_compress.packing.encoding import Encoded, encode
from lightning_compress.packing.entry import Entry, Part
from lightning_compress.packing.packed_file import Item, PackedFile, items_of, packed_tensor
from lightning_compress.packing.progress_bar import track
from lightning_compress.packing.quantized_tensors import scale_name
from lightning_compress.packing.tensors import as_half, checked_halves, norms_of, shared_with, tensors_of


def save_packed(
    model: nn.Module | Mapping[str, Tensor], path: str | Path, *, half: Sequence[str] = (), progress: bool = False
) -> PackedFile:
    """Writes a model's state dict into one small file, from which every bit comes back.

    Each tensor is packed in the way that takes the fewest bytes: dense, or the positions of its zeros and the other
    values; as they are, or as indices into a codebook (of all, of each channel or group, or of vectors of 2 or 4), or
    as whole numbers times the scale of its quantizer; entropy-coded. Deep Compression (Han et al. 2016,
    arXiv:1510.00149) with asymmetric numeral systems. The file is a safetensors file; :func:`load_packed` reads it
    and needs no Lightning.

    Args:
        model: The model, or a state dict; it stays as it is. :func:`finalize` gives a plain one after a fit.
        path: Where to write; what is there is replaced when the new file is complete.
        half: What is rounded to float16, which loses bits: ``"codebooks"``, ``"norms"`` (all tensors of normalization
            layers), both, or nothing. Tensors with values beyond float16 stay as they are.
        progress: Whether to show a progress bar.

    Returns:
        What is in the file.

    Raises:
        ValueError: For another ``half``, or a state dict with something else than tensors in memory.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = save_packed(nn.Linear(100, 10), f"{folder}/model.packed")
    ...     file.num_bytes == Path(file.path).stat().st_size
    True
    """
    halves = checked_halves(half)
    tensors = tensors_of(model)
    norms, shared = norms_of(model, tensors), shared_with(tensors)
    with written(path) as partial, tempfile.TemporaryFile(dir=partial.parent) as payload:
        packed = []
        for name in track(tensors, "packing", shown=progress):
            if name in shared:
                packed.append(_Packed(Entry(name, same=shared[name])))
            else:
                packed.append(_pack(name, tensors, payload, halves, name in norms))
        header = header_of([p.entry for p in packed], payload.tell())
        write_container(partial, header, payload)
    return _report(Path(path), packed, tensors, norms, len(header))


@dataclass(frozen=True)
class _Packed:
    entry: Entry
    num_sparse_bytes: int = 0
    num_fixed_bytes: int = 0


def _pack(
    name: str, tensors: Mapping[str, Tensor], payload: IO[bytes], halves: frozenset[str], is_norm: bool
) -> _Packed:
    tensor = tensors[name]
    encoded = encode(tensor, tensors.get(scale_name(name)))
    rounded = as_half(tensor) if _is_halved(encoded, halves, is_norm) else None
    entry = Entry(name, dtype_name(tensor.dtype), tuple(tensor.shape), scale=None)
    num_sparse_bytes = encoded.num_sparse_bytes
    if rounded is not None:
        encoded, entry, tensor = encode(rounded), replace(entry, half=True), rounded.to(tensor.dtype)
    if encoded.integers is not None:
        integers = encoded.integers
        entry = replace(entry, scale=scale_name(name), axis=integers.axis, minus=integers.minus)
    parts = tuple(Part(s.kind, payload.write(s.data), s.parameters) for s in encoded.streams)
    entry = replace(entry, crc32=checksum(name, tensor), parts=parts, width=encoded.width)
    return _Packed(entry, num_sparse_bytes, min(encoded.num_fixed_bytes, num_sparse_bytes))


def _is_halved(encoded: Encoded, halves: frozenset[str], is_norm: bool) -> bool:
    kinds = {stream.kind for stream in encoded.streams}
    has_codebook = "split" not in kinds and bool(kinds & {"codebook", "blocks"})
    return encoded.integers is None and (("norms" in halves and is_norm) or ("codebooks" in halves and has_codebook))


def _report(
    path: Path, packed: list[_Packed], tensors: Mapping[str, Tensor], norms: frozenset[str], num_header_bytes: int
) -> PackedFile:
    entries = tuple(p.entry for p in packed)
    num_bytes = num_header_bytes + sum(entry.num_bytes for entry in entries)
    stages = (
        Item("dense", sum(tensors[e.name].nbytes for e in entries if e.same is None)),
        Item("+ prune", num_header_bytes + sum(p.num_sparse_bytes for p in packed)),
        Item("+ cluster", num_header_bytes + sum(p.num_fixed_bytes for p in packed)),
        Item("+ entropy coding", num_bytes),
    )
    table = tuple(packed_tensor(entry, tensors[entry.name].numel()) for entry in entries)
    return PackedFile(path, num_bytes, items_of(entries, norms, num_header_bytes), stages, table)
