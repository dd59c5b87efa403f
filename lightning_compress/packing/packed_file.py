"""What is in a packed file, to the byte."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_compress.packing.entry import Entry, Part
from lightning_compress.packing.positions import KINDS

if TYPE_CHECKING:  # rich is loaded when something is printed
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

_TABLES = ("codebook", "blocks", "range")
_WORDS = {
    "raw": "dense",
    "split": "coded exponents",
    "bitmask": "bit mask",
    "blocks": "codebooks of blocks",
    "range": "",
    "indices": "",
    "symbols": "with zeros",
    "ans": "entropy-coded",
    "bits": "fixed width",
}


@dataclass(frozen=True)
class Item:
    """A kind of bytes in a file, or a stage on the way to it.

    Attributes:
        name: Which.
        num_bytes: How many bytes.
    """

    name: str
    num_bytes: int


@dataclass(frozen=True)
class PackedTensor:
    """One tensor in a file.

    Attributes:
        name: As in the state dict.
        num_elements: How many elements it has.
        encoding: How it is packed.
        num_bytes: Its bytes in the file, without the header's.
    """

    name: str
    num_elements: int
    encoding: str
    num_bytes: int

    @property
    def bits(self) -> float:
        """Bits for each element."""
        return 8 * self.num_bytes / self.num_elements if self.num_elements else 0.0


@dataclass(frozen=True)
class PackedFile:
    """A packed file; prints as a table.

    Attributes:
        path: The file.
        num_bytes: Its size.
        items: What its bytes are; they add up to its size.
        stages: Sizes of the same tensors dense (their bytes in memory), then as files: with zeros left out, with
            codebooks or integers of a fixed number of bits as well, and entropy-coded, which is this file.
        tensors: Its tensors; one that shares memory with another takes nothing.
    """

    path: Path
    num_bytes: int
    items: tuple[Item, ...]
    stages: tuple[Item, ...]
    tensors: tuple[PackedTensor, ...]

    def to_json(self) -> str:
        """The same as JSON, for programs."""
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
        for column in ("bytes", "bits each"):
            table.add_column(column, justify="right")
        for tensor in self.tensors:
            table.add_row(tensor.name, tensor.encoding, f"{tensor.num_bytes:,}", f"{tensor.bits:.2f}")
        yield table
        yield _table("what the bytes are", self.items, self.num_bytes)
        yield _table("stage", self.stages, self.stages[0].num_bytes)


def items_of(entries: tuple[Entry, ...], norms: frozenset[str], num_header_bytes: int) -> tuple[Item, ...]:
    """What the bytes of a file are, kind by kind."""
    kinds = ("values", "masks", "codebooks", "scales", "norms", "other dense", "header")
    sizes = dict.fromkeys(kinds, 0) | {"header": num_header_bytes}
    for entry in entries:
        for part in entry.parts:
            sizes[_kind(entry, part, entry.name in norms)] += part.num_bytes
    return tuple(Item(kind, sizes[kind]) for kind in kinds)


def packed_tensor(entry: Entry, num_elements: int) -> PackedTensor:
    """An entry's line of the report."""
    if entry.same is not None:
        return PackedTensor(entry.name, num_elements, f"same as {entry.same}", 0)
    kinds = [word for part in entry.parts for word in (part.kind, *part.parameters[-1:]) if isinstance(word, str)]
    kinds = kinds if entry.scale is None else ["integers", *kinds]
    words = dict.fromkeys(filter(None, (_WORDS.get(kind, kind) for kind in kinds)))
    if entry.width > 1:
        words[f"vectors of {entry.width}"] = None
    if entry.half:
        words["rounded to float16"] = None
    return PackedTensor(entry.name, num_elements, ", ".join(words), entry.num_bytes)


def _kind(entry: Entry, part: Part, is_norm: bool) -> str:
    if entry.name.rpartition(".")[2].startswith("quant_"):
        return "scales"
    if is_norm:
        return "norms"
    if part.kind in KINDS:
        return "masks"
    kinds = [other.kind for other in entry.parts]
    if kinds[0] in ("raw", "split"):
        return "other dense"
    return "codebooks" if part.kind in _TABLES and "split" not in kinds else "values"


def _table(title: str, items: tuple[Item, ...], whole: int) -> Table:
    from rich.table import Table

    table = Table()
    table.add_column(title)
    for column in ("bytes", "share"):
        table.add_column(column, justify="right")
    for item in items:
        table.add_row(item.name, f"{item.num_bytes:,}", f"{item.num_bytes / max(whole, 1):.2%}")
    return table
