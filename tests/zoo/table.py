"""The tables in README.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.zoo.cells import Cell
from tests.zoo.explanations import EXPLANATIONS
from tests.zoo.networks import FAMILIES

README = Path(__file__).parent / "README.md"


class Footnotes:
    """Numbered sentences, each once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def reference(self, sentence: str) -> str:
        """Return the number of a sentence in brackets."""
        return f"[{self._numbers.setdefault(sentence, len(self._numbers) + 1)}]"

    def lines(self) -> list[str]:
        """Return the sentences as a numbered list."""
        return [f"{number}. {sentence}" for sentence, number in self._numbers.items()]


def table(rows: Mapping[str, Sequence[Cell]]) -> str:
    """Return a Markdown table, with the sentences of its refusals and explanations below.

    Args:
        rows: Cells by network name.
    """
    notes = Footnotes()
    titles = [cell.title for cell in next(iter(rows.values()))]
    lines = [f"| family | network | {' | '.join(titles)} |", "|---" * (len(titles) + 2) + "|"]
    for family, makes in FAMILIES.items():
        for name in (make.__name__ for make in makes if make.__name__ in rows):
            cells = " | ".join(_text(name, cell, notes) for cell in rows[name])
            lines.append(f"| {family} | {name} | {cells} |")
    return "\n".join([*lines, "", summary(rows), "", *notes.lines()]).strip()


def _text(name: str, cell: Cell, notes: Footnotes) -> str:
    if cell.number is None:
        return cell.failure.partition(":")[0] or notes.reference(cell.refusal)
    number = f"{min(cell.number, 99.0):.1f}"
    explanation = EXPLANATIONS.get((name, cell.title)) if cell.is_low else None
    return f"{number} {notes.reference(explanation)}" if explanation else number


def summary(rows: Mapping[str, Sequence[Cell]]) -> str:
    """Count the cells by their kind."""
    cells = [cell for row in rows.values() for cell in row]
    refusals, failures = (sum(bool(getattr(cell, kind)) for cell in cells) for kind in ("refusal", "failure"))
    return (
        f"{len(rows)} networks, {len(cells)} cells: {len(cells) - refusals - failures} numbers, {refusals} refusals "
        f"({100 * refusals / len(cells):.0f} %), {failures} exceptions or hangs."
    )


def write(technique: str, text: str) -> None:
    """Replace the generated part of a technique in README.md."""
    begin, end = f"<!-- {technique}: generated -->", f"<!-- {technique}: end -->"
    before, _, rest = README.read_text().partition(begin)
    _, _, after = rest.partition(end)
    README.write_text(f"{before}{begin}\n{text}\n{end}{after}")
