"""Report on a packed file: bytes by tensor, by content and by stage of compression."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_compress.packing.encodings import ENCODINGS, is_codebook, is_position, is_without_codebook
from lightning_compress.packing.entry import Entry, StreamEntry

if TYPE_CHECKING:  # rich is imported only when a report is printed
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

_CONTENTS = ("values", "masks", "codebooks", "scales", "norms", "other dense", "header")


@dataclass(frozen=True)
class Item:
    """Number of bytes of one kind of content, or after one stage of compression.

    Attributes:
        name: Kind of content, or stage.
        num_bytes: Size in bytes.
    """

    name: str
    num_bytes: int


@dataclass(frozen=True)
class PackedTensor:
    """One tensor of a packed file.

    Attributes:
        name: Name in the state dict.
        num_elements: Number of elements.
        encoding: Description of its encodings.
        num_bytes: Size in the file in bytes, without its share of the header.
        entropy: Zero-order entropy of its values in bits per element, the least that a code takes which knows how
            often each value occurs and nothing else; ``None`` if more than half of the values are distinct. Codes that
            predict values from their neighbors or from a base take less.
    """

    name: str
    num_elements: int
    encoding: str
    num_bytes: int
    entropy: float | None = None

    @property
    def bits(self) -> float:
        """Bits per element."""
        return 8 * self.num_bytes / self.num_elements if self.num_elements else 0.0


@dataclass(frozen=True)
class PackedFile:
    """Report on a packed file, which prints as a table.

    Attributes:
        path: Path of the file.
        num_bytes: Size of the file in bytes.
        items: Bytes by content, which add up to the size of the file: values, masks, codebooks, scales, tensors of
            normalization layers, other dense tensors, and the header.
        stages: Sizes of the same tensors: dense in memory; then as files, with zeros left out, with values indexed in
            a fixed number of bits as well, and entropy-coded, which is the size of this file.
        tensors: Tensors of the file; one that shares memory with another takes no bytes.

    Example:
        >>> import tempfile, torch, lightning_compress as lc
        >>> weight = torch.zeros(100, 100)
        >>> weight[:, :10] = 1.0
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = lc.save_packed({"weight": weight}, f"{folder}/weight.packed")
        >>> file.stages[0]
        Item(name='dense', num_bytes=40000)
        >>> file.tensors[0].bits < 0.05
        True
    """

    path: Path
    num_bytes: int
    items: tuple[Item, ...]
    stages: tuple[Item, ...]
    tensors: tuple[PackedTensor, ...]

    def to_json(self) -> str:
        """Return the report as a JSON object with the attributes as keys."""
        return json.dumps({**asdict(self), "path": str(self.path)}, indent=2)

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=100, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get().rstrip()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        table = Table(title=f"{self.path.name}: {self.num_bytes:,} bytes")
        table.add_column("tensor", overflow="fold")
        table.add_column("encoding", overflow="fold")
        for column in ("bytes", "bits per element", "entropy"):
            table.add_column(column, justify="right")
        for tensor in self.tensors:
            entropy = "" if tensor.entropy is None else f"{tensor.entropy:.2f}"
            table.add_row(tensor.name, tensor.encoding, f"{tensor.num_bytes:,}", f"{tensor.bits:.2f}", entropy)
        yield table
        yield _table("content", self.items, self.num_bytes)
        yield _table("stage", self.stages, self.stages[0].num_bytes)


def items_of(entries: tuple[Entry, ...], norms: frozenset[str], num_header_bytes: int) -> tuple[Item, ...]:
    """Return the bytes of a file by content."""
    sizes = dict.fromkeys(_CONTENTS, 0) | {"header": num_header_bytes}
    for entry in entries:
        for stream in entry.streams:
            sizes[_content(entry, stream, entry.name in norms)] += stream.num_bytes
    return tuple(Item(content, sizes[content]) for content in _CONTENTS)


def packed_tensor(entry: Entry, num_elements: int, entropy: float | None) -> PackedTensor:
    """Return the line of the report for an entry."""
    if entry.shared_with is not None:
        return PackedTensor(entry.name, num_elements, f"same as {entry.shared_with}", 0)
    # The last parameter of a stream of symbols is the kind of its coder; other parameters are integers.
    kinds = [kind for stream in entry.streams for kind in (stream.kind, *stream.parameters[-1:])]
    labels = ["quantized"] if entry.scale is not None else []
    labels += [ENCODINGS[kind].label for kind in kinds if isinstance(kind, str)]
    labels += [f"vectors of {entry.width}"] if entry.width > 1 else []
    labels += ["rounded to float16"] if entry.half else []
    # Each label once, in the order of the streams; encodings not worth reporting have an empty label.
    encoding = ", ".join(dict.fromkeys(filter(None, labels)))
    return PackedTensor(entry.name, num_elements, encoding, entry.num_bytes, entropy)


def _content(entry: Entry, stream: StreamEntry, is_norm: bool) -> str:
    if entry.name.rpartition(".")[2].startswith("quant_"):
        return "scales"
    if is_norm:
        return "norms"
    kinds = [other.kind for other in entry.streams]
    if is_position(stream.kind):
        return "masks"
    if is_without_codebook(kinds[0]):
        return "other dense"
    return "codebooks" if is_codebook(stream.kind, kinds) else "values"


def _table(title: str, items: tuple[Item, ...], total: int) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column(title)
    for column in ("bytes", "share"):
        table.add_column(column, justify="right")
    for item in items:
        table.add_row(item.name, f"{item.num_bytes:,}", f"{item.num_bytes / max(total, 1):.2%}")
    return table
